"""Record carvision's results, to the bit, and compare them: the guard of a change that must not change any.

  python scripts/golden.py make /path/to/before /tmp/before --jobs 2   of the code of a checkout; about 3 CPU minutes
  python scripts/golden.py make . /tmp/after --jobs 2                  of the code as it is now
  python scripts/golden.py compare /tmp/before /tmp/after              every difference; exit status 1 if there is one
  python scripts/golden.py write /tmp/after                            after a deliberate change: renew tests/golden

A checkout of the commit before is made with `git worktree add /path/to/before HEAD~1`.

make CHECKOUT FOLDER runs the checkout's commands with the Python that runs this script: on the CPU, with one thread
and the seeds of conf/. They run in FOLDER/work, where all that they write stays. Recorded of it, as text:
  configs.yaml      the configuration of every command that composes one, and what differs in it with every experiment,
                    search and choice of a group (`compose CHECKOUT` prints it alone)
  commands/         what --cfg job prints for each of those commands, in a process of its own
  photos.txt        hashes of the demo photos, a line per folder
  runs/<name>/      of five tiny runs the text files (config.yaml, splits.csv, history.csv, metrics.json, model.json,
                    results.txt, summary.txt), and of the weights the sha256
  predictions.csv   of predict, and evaluation/ of evaluate: all but pictures and the page
  sweep/            of a search: trials.csv and the experiment of its best trial
  outputs.yaml      names alone: of files (pictures, too), of columns, of keys
Seconds, times, versions and the path of FOLDER are left out. Two folders are equal to the bit only if one machine made
both, with the same libraries.

configs.yaml and outputs.yaml are the same on every machine. `write FOLDER` copies the one, and of the other two of the
runs, the predictions and the evaluation, to tests/golden of this checkout; tests/test_golden.py compares the code with
them. A commit that changes them says why. The earlier run and search in tests/golden are never made again.

Only the commands of carvision are used, as `python -m` runs them, so that modules may move between two checkouts.
"""

import argparse
import contextlib
import csv
import difflib
import hashlib
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

# The classes in C read the configurations in a tenth of the time
LOADER, DUMPER = (getattr(yaml, f"C{name}", getattr(yaml, name)) for name in ("SafeLoader", "SafeDumper"))

COMMITTED = Path(__file__).resolve().parent.parent / "tests" / "golden"
GROUPS = ("augment", "callbacks", "data", "experiment", "logger", "loss", "metric_loss", "model", "optimizer")
GROUPS += ("schedule", "trainer")
SEARCHED = "seed=choice(0,1)"  # something must be
BASES = {"train": "train", "augment_sheet": "train", "sweep": "train"}
COMMANDS = {  # {command that composes: words with which it does}
    "train": ["experiment=stanford_cars_frozen", "data.root=photos"],
    "sweep": ["optimizer.lr=tag(log,interval(1e-4,1e-1))", "augment=choice(none,light)"],
    "check": ["data=folder", "data.root=photos"],
    "pack": ["data=stanford_cars", "data.root=photos"],
    "augment_sheet": ["experiment=oxford102_frozen", "data.root=photos"],
}

SMALL = ["data.root=photos", "data.image_px=32", "data.batch_size=16", "data.num_workers=0", "features.dir=features"]
SMALL += ["model.backbone=test_resnet", "model.weights=random", "callbacks.progress_bar=false"]
DEMO = [*SMALL, "data.images_per_model=20", "trainer.max_epochs=2"]
TABLE = [*SMALL, "data=manifest", "data.file=<work>/table.csv", "trainer.max_epochs=2"]
RUNS = {  # {name: words of train}
    "demo": DEMO,
    "number": [*TABLE, "data.labels=[make,model]", "data.numbers=[speed]", "data.split.kind=stratified"],
    "frozen": [*DEMO, "model.train_layers=none", "model.start=linear", "augment=none"],
    "kfold": [*TABLE, "data.labels=[model]", "data.split.kind=kfold", "data.split.num_folds=2", "logger=none"],
    "triplet": [*DEMO, "metric_loss=triplet", "data.batch_size=32"],
}
TESTED = ("demo", "number")  # those of which tests/golden has the outputs, as each costs the tests some seconds
PREDICT = "demo --list demo/splits.csv --split test --out predictions.csv --probs --top 2 --no-progress --workers 0"
EVALUATE = "demo --out evaluation --samples 20"
SWEEP = [*DEMO, *COMMANDS["sweep"], "trainer.max_epochs=1", "logger=none", "sweep.dir=sweep", "sweep.trials=3"]

CONTENTS = {".csv", ".json", ".md", ".txt", ".yaml"}
# Files of a run that depend on the machine: its versions, and the messages of each start
NOT_COMPARED = {"environment.json", "tensorboard/hparams.yaml"}
VOLATILE = re.compile(r"seconds|.*_seconds|seconds_.*|time|host|versions")  # keys and columns
EVENTS = re.compile(r"(events\.out\.tfevents)\..*")

Start = Callable[[str, list[str]], object]  # runs python -m carvision.<command> <words> in the folder work


def compose(checkout: Path) -> dict[str, dict]:
    """Return {words of a command: {dotted key: value}}, with the keys in which it differs from the one of BASES.

    All in this process, in which carvision is that of the checkout from then on.
    """
    sys.path.insert(0, str(checkout))
    committed = COMMITTED / "configs.yaml"
    wanted = set(read_yaml(committed.read_text(encoding="utf-8")) if committed.exists() else [])
    # In addition to those of tests/golden: names that users type stay valid even if there is no such file any more
    wanted |= {"train", "check", "pack", "augment_sheet", f"sweep sweep=tpe {SEARCHED}"}
    wanted |= {f"train {group}={name}" for group in GROUPS for name in _choices(checkout, group)}
    wanted |= {f"sweep sweep={name} {SEARCHED}" for name in _choices(checkout, "sweep")}
    shown = {key: _shown(*key.split()) for key in sorted(wanted)}
    bases = {key: shown.get(BASES.get(key.split()[0]), {}) if key != "train" else {} for key in shown}
    return {key: differences(bases[key], config) for key, config in shown.items()}


def _choices(checkout: Path, group: str) -> list[str]:
    return [file.stem for file in (checkout / "conf" / group).glob("*.yaml")]


def _shown(command: str, *words: str) -> dict:
    """Return what --cfg job prints; if the words are refused, the reason."""
    from hydra.core.global_hydra import GlobalHydra

    out, errors = io.StringIO(), io.StringIO()
    sys.argv = [f"carvision.{command}", *words, "--cfg", "job", *(["--resolve"] if command != "sweep" else [])]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if ended.code:
            return {"error": f"{ended.code} {errors.getvalue()}".strip()}
    finally:
        GlobalHydra.instance().clear()
    return read_yaml(out.getvalue())


def differences(base: Mapping, other: Mapping, prefix: str = "") -> dict:
    """Return {dotted key: value in other} where the two differ; the value of a key that other lacks is "(none)"."""
    found = {f"{prefix}{key}": "(none)" for key in base if key not in other}
    for key, value in other.items():
        if isinstance(value, dict) and value and isinstance(base.get(key, {}), dict):
            found |= differences(base.get(key, {}), value, f"{prefix}{key}.")
        elif key not in base or json.dumps(base[key]) != json.dumps(value):  # 1, 1.0 and true are not the same
            found[f"{prefix}{key}"] = value
    return found


def write_table(work: Path) -> None:
    """Write table.csv: every second photo of work/photos, its make and model and a made-up number."""
    paths = sorted(path.relative_to(work / "photos") for path in (work / "photos").glob("data/image/**/*.jpg"))
    with (work / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "make", "model", "speed"])
        for path in paths[::2]:
            make, model = path.parts[2:4]
            writer.writerow([path.as_posix(), make, model, 100 + int(model)])


def train(start: Start, name: str, work: Path) -> None:
    start("train", [*(word.replace("<work>", str(work)) for word in RUNS[name]), f"run.dir={name}"])


def run_all(start: Start, work: Path, jobs: int = 1, names: Iterable[str] = RUNS) -> None:
    """Leave the runs of these names, the first of them always, its predictions and its evaluation in `work`."""
    train(start, "demo", work)  # which draws the photos, unless they are there
    write_table(work)
    tasks = [lambda name=name: train(start, name, work) for name in names if name != "demo"]
    # In this order, as evaluate stores a temperature in the run
    tasks.append(lambda: (start("predict", PREDICT.split()), start("evaluate", EVALUATE.split())))
    with ThreadPoolExecutor(jobs) as pool:
        for done in [pool.submit(task) for task in tasks]:
            done.result()


def outputs(work: Path) -> dict[str, dict]:
    """Return the names of files, columns and keys in `work`, which do not depend on the processor.

    Of the runs after the first only what differs from the first; of several folds and trials only the first.
    """
    found = {}
    for name in (name for name in (*RUNS, "evaluation", "sweep") if (work / name).is_dir()):
        found[name] = grouped("files", [EVENTS.sub(r"\1.*", file.as_posix()) for file in files_in(work / name)])
        for file in files_in(work / name):
            if re.match(r"fold_[1-9]|trials/", file.as_posix()):
                continue
            if file.suffix == ".csv":
                found[name] |= grouped(file.as_posix(), columns_of(work / name / file))
            elif file.name in ("metrics.json", "model.json", "evaluation.json"):
                content = json.loads((work / name / file).read_text(encoding="utf-8"))
                if file.name == "model.json":  # the same as metrics.json and configs.yaml
                    content |= {"metrics": None, "config": None}
                found[name] |= grouped(file.as_posix(), keys_of(content))
    found["predictions"] = grouped("predictions.csv", columns_of(work / "predictions.csv"))
    others = [name for name in RUNS if name in found and name != "demo"]
    return found | {name: differences(found["demo"], found[name]) for name in others}


def files_in(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def columns_of(table: Path) -> list[str]:
    with table.open(encoding="utf-8") as file:
        return next(csv.reader(file))


def keys_of(value: object, prefix: str = "") -> list[str]:
    """Return the keys that lead to values; those inside lists are left out."""
    if not isinstance(value, dict) or not value:
        return [prefix.removesuffix("|")]
    return [key for name, inner in value.items() for key in keys_of(inner, f"{prefix}{name}|")]


def grouped(file: str, names: Iterable[str]) -> dict[str, list[str]]:
    """Return {the file and what names have in common up to their last / or |: what stands behind it}."""
    found = {}
    for name in names:
        before, last = re.fullmatch(r"(.*[/|])?(.*)", name).groups(default="")
        found.setdefault(f"{file} {before}".strip(), []).append(last)
    return found


def write_results(work: Path, folder: Path) -> None:
    """Write what is compared to `folder`."""
    for name in RUNS:
        for file in (work / name).rglob("*"):
            inside = file.relative_to(work / name).as_posix()
            if file.name == "model.safetensors":
                digest = hashlib.sha256(file.read_bytes()).hexdigest()
                _write(folder / "runs" / name / f"{inside}.sha256", f"{digest}\n")
            elif file.suffix in CONTENTS and inside not in NOT_COMPARED and file.name not in NOT_COMPARED:
                _write(folder / "runs" / name / inside, normalised(file, work))
    for file in sorted((work / "evaluation").rglob("*")):
        if file.suffix in CONTENTS:
            _write(folder / "evaluation" / file.relative_to(work / "evaluation"), normalised(file, work))
    for file in (work / "sweep" / "trials.csv", *sorted((work / "sweep" / "experiment").glob("*.yaml"))):
        _write(folder / "sweep" / file.name, normalised(file, work))
    _write(folder / "predictions.csv", normalised(work / "predictions.csv", work))
    hashes: dict[str, hashlib._Hash] = {}
    for file in sorted(path for path in (work / "photos").rglob("*") if path.is_file()):
        inside = file.relative_to(work / "photos")
        digest = hashes.setdefault("/".join(inside.parts[:-1][:4]), hashlib.sha256())
        digest.update(f"{inside.as_posix()}\n".encode() + hashlib.sha256(file.read_bytes()).digest())
    _write(folder / "photos.txt", "".join(f"{name} {digest.hexdigest()}\n" for name, digest in hashes.items()))
    _write(folder / "outputs.yaml", as_yaml(outputs(work)))


def normalised(file: Path, work: Path) -> str:
    """Return the file's text without what differs between any two runs."""
    text = file.read_text(encoding="utf-8").replace(str(work), "<work>")
    if file.suffix == ".csv":
        rows = list(csv.reader(io.StringIO(text)))
        kept = [i for i, name in enumerate(rows[0]) if not VOLATILE.fullmatch(name)]
        return "".join(f"{','.join(row[i] for i in kept)}\n" for row in rows)
    if file.suffix == ".json":
        return json.dumps(without_volatile(json.loads(text)), indent=1, ensure_ascii=False) + "\n"
    return re.sub(r"^.* (min|s) wall, .*\n", "", text, flags=re.MULTILINE)


def without_volatile(value: object) -> object:
    if isinstance(value, dict):
        return {key: without_volatile(inner) for key, inner in value.items() if not VOLATILE.fullmatch(key)}
    return [without_volatile(inner) for inner in value] if isinstance(value, list) else value


def as_yaml(content: dict[str, dict]) -> str:
    """Format with a line per key, whatever the value, so that a difference of two files names the key."""
    lines = []
    for name, values in content.items():
        lines.append(f"{name}:" if values else f"{name}: {{}}")
        for key, value in values.items():
            lines.append(f"  {_in_a_line(key)}: {_in_a_line(value)}")
    return "".join(f"{line}\n" for line in lines)


def _in_a_line(value: object) -> str:
    text = yaml.dump(value, Dumper=DUMPER, default_flow_style=True, width=1 << 30, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def read_yaml(text: str) -> dict:
    return yaml.load(text, Loader=LOADER)


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def make(checkout: Path, folder: Path, jobs: int) -> None:
    checkout, folder = checkout.resolve(), folder.resolve()
    if folder.exists() and any(folder.iterdir()):
        sys.exit(f"{folder} is not empty; name another folder")
    work = folder / "work"
    work.mkdir(parents=True)
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def python(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=work, env=environment, capture_output=True, encoding="utf-8", errors="replace"
        )
        if done.returncode:
            sys.exit(f"{' '.join(words)}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def start(command: str, words: list[str]) -> str:
        return python("-m", f"carvision.{command}", *words)

    _write(folder / "configs.yaml", python(__file__, "compose", str(checkout)))
    for command, words in COMMANDS.items():
        _write(folder / "commands" / f"{command}.yaml", start(command, [*words, "--cfg", "job"]))
    run_all(start, work, jobs)
    start("sweep", SWEEP)
    write_results(work, folder)


def compare(one: Path, other: Path) -> int:
    """Print every difference between the two folders; return how many files differ."""
    texts = []
    for folder in (one, other):
        if not (folder / "outputs.yaml").is_file():
            sys.exit(f"{folder} is no folder that make has completed")
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        texts.append({
            name: path.read_text(encoding="utf-8") for name, path in files.items() if not name.startswith("work/")
        })  # fmt: skip
    differing = [name for name in sorted(texts[0] | texts[1]) if texts[0].get(name) != texts[1].get(name)]
    for name in differing:
        before, after = (text.get(name, "(no such file)\n").splitlines(keepends=True) for text in texts)
        sys.stdout.writelines(difflib.unified_diff(before, after, f"{one}/{name}", f"{other}/{name}", n=0))
    print(f"{len(differing)} of {len(texts[0] | texts[1])} files differ")
    return len(differing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    one = commands.add_parser("make", help="run the commands of a checkout, and record their results")
    one.add_argument("checkout", type=Path)
    one.add_argument("folder", type=Path)
    one.add_argument("--jobs", type=int, default=1, metavar="N", help="commands at the same time (1)")
    one = commands.add_parser("compare", help="print every difference between two folders of make")
    one.add_argument("folders", type=Path, nargs=2, metavar="FOLDER")
    one = commands.add_parser("write", help="copy what is the same on every machine to tests/golden")
    one.add_argument("folder", type=Path)
    one = commands.add_parser("compose", help="print configs.yaml of a checkout")
    one.add_argument("checkout", type=Path)
    options = parser.parse_args()
    if options.command == "make":
        make(options.checkout, options.folder, options.jobs)
    elif options.command == "compare":
        sys.exit(compare(*options.folders) > 0)
    elif options.command == "write":
        shutil.copyfile(options.folder / "configs.yaml", COMMITTED / "configs.yaml")
        found = read_yaml((options.folder / "outputs.yaml").read_text(encoding="utf-8"))
        tested = {name: found[name] for name in (*TESTED, "evaluation", "predictions")}
        _write(COMMITTED / "outputs.yaml", as_yaml(tested))
    else:
        print(as_yaml(compose(options.checkout.resolve())), end="")


if __name__ == "__main__":
    main()
