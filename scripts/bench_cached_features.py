"""Compare epochs on the cached features of a frozen backbone with epochs through it: features.keep on and off.

    python scripts/bench_cached_features.py experiment=ten_classes_frozen data.root=imagenette model.weights=<file>

Every round runs carvision.train through the backbone, with an empty cache ("cached"), and with a filled one ("found",
as the next run of a sweep finds it). Prints a table: the epochs from the second on, the first with all that comes
before it, and the whole process; and whether history and test metrics are the same.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from side_by_side import machine, measure, summarise, table, write

COLUMNS = ["later_epoch_s", "first_epoch_s", "wall_s", "cpu_s"]


def run(folder: Path, overrides: list[str]) -> dict:
    command = [sys.executable, "-m", "carvision.train", *overrides, f"run.dir={folder}", "run.report=false"]
    command += ["callbacks.progress_bar=false"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    history = pd.read_csv(folder / "history.csv")
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    epochs = history["seconds"].tolist()
    return {
        "later_epoch_s": statistics.median(epochs[1:]),
        "first_epoch_s": epochs[0] + metrics["seconds"].get("features", 0.0),
        "results": [history.drop(columns="seconds").to_dict("list"), metrics["test"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="+", help="for carvision.train")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON of all measurements")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)

        def candidate(keep: str, fresh: bool):
            def start() -> dict:
                moment = str(time.monotonic_ns())
                features = top / "features" / (moment if fresh else "shared")
                own = ["logger=none", f"trainer.max_epochs={args.epochs}", f"features.keep={keep}"]
                return run(top / moment, [*args.overrides, *own, f"features.dir={features}"])

            return start

        candidates = {
            "through the backbone": candidate("false", fresh=True),
            "cached": candidate("true", fresh=True),
            "found": candidate("true", fresh=False),
        }
        candidates["found"]()  # fills the cache
        samples = measure(candidates, args.rounds, memory=False)
    equal = all(one["results"] == samples["cached"][0]["results"] for rounds in samples.values() for one in rounds)
    summary = summarise(samples, "through the backbone")
    print(table(summary, COLUMNS))
    times = 1 / summary["cached"]["later_epoch_s"]["ratio"]
    print(f"\nFrom the second epoch on {times:,.0f} times faster; all metrics equal to the last digit: {equal}")
    write(args.out, {"machine": machine(), "times_faster": times, "equal": equal, "summary": summary})


if __name__ == "__main__":
    main()
