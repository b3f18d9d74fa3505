"""Runs of two processes by each launcher: which one writes, and how an error, a signal or a kill ends them."""

import json
import os
import signal
from pathlib import Path

import pandas as pd
import pytest

from tests import forked, small_runs
from tests.training.distributed import processes

pytestmark = pytest.mark.slow

SMALL = [
    *small_runs.SMALL, "model.backbone=test_convnext", "data.batch_size=4", "trainer=ddp", "trainer.accelerator=cpu"
]  # fmt: skip
# Each process runs this at its start: it records what it opens for writing, makes, renames or removes.
LOGS_WRITING = """
import os, sys
rank = next((os.environ[n] for n in ("RANK", "SLURM_PROCID") if n in os.environ), "agent")
log = os.open(f"{os.environ['WRITES']}.{rank}.{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def note(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        os.write(log, os.fsencode(arguments[0]) + b"\\n")
    elif event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"):
        os.write(log, b"".join(os.fsencode(a) + b"\\n" for a in arguments if isinstance(a, (str, bytes))))
sys.addaudithook(note)
"""


def as_command(words: list[str]) -> str:
    """Return code for a forked process, which makes it what `python -m carvision.train words` is."""
    return f"import sys; sys.orig_argv = {['python', '-m', 'carvision.train', *words]!r}\n"


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> Path:
    """A folder for each launcher's run, with writes.<rank>.<pid> and output.txt beside the runs."""
    top = tmp_path_factory.mktemp("launched")
    (top / "hook").mkdir()
    (top / "hook" / "sitecustomize.py").write_text(LOGS_WRITING)
    train = [*processes.write_manifest(top / "data", {"train": 21, "val": 7, "test": 5}, bad=True), *SMALL]
    first = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": processes.free_port()}
    port = processes.free_port()
    machines = [processes.environment(**first, NODE_RANK=rank) for rank in (0, 1)]
    of_srun, two = [processes.by_srun(rank, 2, port) for rank in (0, 1)], ["trainer.devices=1", "trainer.num_nodes=2"]
    for name, words, started in (
        ("agent", train, [processes.environment()]), ("machines", [*train, *two], machines), ("srun", train, of_srun)
    ):  # fmt: skip
        (top / name).mkdir()
        for variables in started:
            path = os.pathsep.join([str(top / "hook"), variables["PYTHONPATH"]])
            variables |= {"WRITES": str(top / name / "writes"), "PYTHONPATH": path}
        commands = [(["carvision.train", *words, "run.report=false"], variables) for variables in started]
        done = processes.run_all(commands, top / name, first=as_command(words) + LOGS_WRITING)
        text = "".join(process.stdout + process.stderr for process in done)
        assert [process.returncode for process in done] == [0] * len(done), text
        (top / name / "output.txt").write_text(text)
    return top


@pytest.mark.parametrize("launcher", ["agent", "machines", "srun"])
def test_all_processes_use_one_folder_and_only_the_first_prints_and_writes(launched, launcher):
    folder = launched / launcher
    (run,) = (folder / "runs" / "manifest").iterdir()
    text = (folder / "output.txt").read_text()
    assert text.count(f"run: runs/manifest/{run.name}\n") == 1 and "Traceback" not in text and "[W" not in text
    assert text.count("epoch 2/2") == 1 and (run / "run.log").read_text().count("epoch 2/2") == 1
    written = {"agent": set(), "0": set(), "1": set()}
    for file in folder.glob("writes.*"):
        paths = {folder / path for path in file.read_text().splitlines()}
        written[file.name.split(".")[1]] |= {path for path in paths if path.is_relative_to(folder) and path != folder}
    assert written["1"] == set() and list(folder.glob("writes.1.*"))
    assert not any(path.is_relative_to(folder / "runs") for path in written["agent"])
    for name in ("config.yaml", "run.log", "history.csv", "checkpoints", "tensorboard", "loss.png", "metrics.json"):
        assert any(str(path).startswith(str(run / name)) for path in written["0"]), name
    metrics, of_srun = (
        json.loads(next((launched / name / "runs" / "manifest").glob("*/metrics.json")).read_text())
        for name in (launcher, "srun")
    )
    assert "make/top1" in metrics["test"]
    assert all(metrics[split] == of_srun[split] for split in ("train", "val", "test"))


@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_an_error_of_the_second_process_ends_both_in_its_line(tmp_path, launcher):
    """Under torchrun in the file that its agent reads. The first process has only lost the second."""
    data = [processes.write_manifest(tmp_path / name, {"train": 9, "val": 3, "test": 3}) for name in ("good", "bad")]
    for photo in (tmp_path / "bad" / "photos").iterdir():
        photo.write_bytes(f"no photo: {photo.name}".encode())
    port, commands = processes.free_port(), []
    for rank in (0, 1):
        variables = getattr(processes, f"by_{launcher}")(rank, 2, port)
        if launcher == "torchrun":
            variables["TORCHELASTIC_ERROR_FILE"] = str(tmp_path / f"error.{rank}")
        words = ["carvision.train", *data[rank], *SMALL, "data.on_bad_image=error", "run.dir=mine"]
        commands.append((words, variables))
    (tmp_path / "cwd").mkdir()
    done = processes.run_all(commands, tmp_path / "cwd")
    text = "".join(process.stdout + process.stderr for process in done)
    assert done[1].returncode == 1 and "Traceback" not in text and "[rank" not in text
    if launcher == "torchrun":
        assert "error:" not in text
        text = json.loads((tmp_path / "error.1").read_text())["message"]
    lines = [line for line in text.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and ".png: not a supported image" in lines[0], text


def test_killed_at_any_moment_and_stopped_by_a_signal_all_end(tmp_path):
    """A rank and the command itself are killed while both import; a signal to the command's group stops both; the same
    command resumes, and a rank is killed while they train."""
    data = processes.write_manifest(tmp_path / "data", {"train": 21, "val": 7, "test": 5})
    words, folder = [*data, *SMALL, "trainer.max_epochs=500", "run.dir=mine"], tmp_path / "cwd"
    folder.mkdir()
    history = folder / "mine" / "history.csv"

    def ended(act, new_epochs: int) -> tuple[int, list[str]]:
        """Start the command, and after so many epochs call act(its process, those that train); return its status and
        what it printed."""
        options = {"env": processes.environment(), "out": tmp_path / "out", "first": as_command(words)}
        before = len(pd.read_csv(history)) if history.exists() else 0
        process = forked.start("carvision.train", *words, "run.report=false", cwd=folder, **options)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        forked.wait_until(lambda: len(children.read_text(encoding="utf-8").split()) == 2)
        forked.wait_until(lambda: (len(pd.read_csv(history)) if history.exists() else 0) >= before + new_epochs)
        ranks = [int(pid) for pid in children.read_text(encoding="utf-8").split()]
        act(process.pid, ranks)
        (done,) = forked.finish([process], [tmp_path / "out"], 60)
        forked.wait_until(lambda: not any(Path(f"/proc/{rank}").exists() for rank in ranks), 60)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, (done.stdout + done.stderr).splitlines()

    status, lines = ended(lambda pid, ranks: os.kill(ranks[0], signal.SIGKILL), 0)
    assert status == 1 and len(lines) == 1 and "rank 0 of this run was killed by SIGKILL" in lines[0]
    assert ended(lambda pid, ranks: os.kill(pid, signal.SIGKILL), 0) == (-9, [])
    status, lines = ended(lambda pid, ranks: os.killpg(pid, signal.SIGTERM), 1)
    assert status == 143 and "run: mine" in lines and (folder / "mine" / "checkpoints" / "last.ckpt").exists(), lines
    status, lines = ended(lambda pid, ranks: os.kill(ranks[1], signal.SIGKILL), 1)
    assert any("resuming after" in line for line in lines) and status == 1
    [error] = [line for line in lines if line.startswith("error:")]
    assert "rank 1 of this run was killed by SIGKILL" in error
