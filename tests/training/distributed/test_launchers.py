"""Runs of two processes by each launcher: which one writes, and how an error ends them."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from carvision.data.loading.samplers import TrainSampler
from tests.training.distributed import processes

pytestmark = pytest.mark.slow

COMMAND = ["carvision.train"]
SMALL = [
    "model.backbone=test_convnext", "model.weights=random", "data.image_px=32", "data.batch_size=4",
    "data.num_workers=0", "callbacks.progress_bar=false", "trainer=ddp", "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
]  # fmt: skip
ON_TWO_MACHINES = ["trainer.devices=1", "trainer.num_nodes=2"]
# Each process runs this at its start: it records what it opens for writing, makes, renames or removes.
LOGS_WRITING = """
import os, sys
rank = next((os.environ[n] for n in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if n in os.environ), "starter")
log = os.open(f"{os.environ['WRITES']}.{rank}.{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def note(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        os.write(log, os.fsencode(arguments[0]) + b"\\n")
    elif event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"):
        os.write(log, b"".join(os.fsencode(a) + b"\\n" for a in arguments if isinstance(a, (str, bytes))))
sys.addaudithook(note)
"""


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> Path:
    """A folder for each launcher's run, with writes.<rank>.<pid> and output.txt beside the runs."""
    top = tmp_path_factory.mktemp("launched")
    (top / "hook").mkdir()
    (top / "hook" / "sitecustomize.py").write_text(LOGS_WRITING)
    data = processes.write_manifest(top / "data", {"train": 21, "val": 7, "test": 5}, bad=True)
    ports = [processes.free_port() for _ in range(2)]
    agent, train = ["torch.distributed.run"], [*COMMAND, *data, *SMALL]
    nodes = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={ports[0]}"]
    commands = {
        "plain": [(train, processes.environment())],
        "torchrun": [([*agent, "--standalone", "--nproc-per-node=2", "-m", *train], processes.environment())],
        "machines": [
            ([*agent, *nodes, f"--node-rank={n}", "-m", *train, *ON_TWO_MACHINES], processes.environment())
            for n in (0, 1)
        ],
        "srun": [(train, processes.by_srun(rank, 2, ports[1])) for rank in (0, 1)],
    }
    for name, started in commands.items():
        folder = top / name
        folder.mkdir()
        for _, variables in started:
            variables["WRITES"] = str(folder / "writes")
            variables["PYTHONPATH"] = os.pathsep.join([str(top / "hook"), variables["PYTHONPATH"]])
        if name in ("plain", "srun"):
            done = processes.run_all(started, folder, first=LOGS_WRITING)
        else:  # torchrun's agents wait for each other when they end, not for one that is gone at once as a forked one
            done = processes.run_afresh(started, folder)
        text = "".join(process.stdout + process.stderr for process in done)
        assert [process.returncode for process in done] == [0] * len(done), text
        (folder / "output.txt").write_text(text)
    return top


LAUNCHERS = ["plain", "torchrun", "machines", "srun"]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_all_processes_use_one_folder_and_only_the_first_prints_and_writes(launched, launcher):
    folder = launched / launcher
    (run,) = (folder / "runs" / "manifest").iterdir()
    text = (folder / "output.txt").read_text()
    assert text.count(f"run: runs/manifest/{run.name}\n") == 1 and "Traceback" not in text
    assert text.count("epoch 2/2") == 1 and (run / "run.log").read_text().count("epoch 2/2") == 1

    def written(rank: int | str) -> set[Path]:
        files = list(folder.glob(f"writes.{rank}.*"))
        assert files, f"no process with rank {rank}"
        paths = {folder / path for file in files for path in file.read_text().splitlines()}
        return {path for path in paths if path.is_relative_to(folder) and path != folder}

    assert written(1) == set()
    first = written("starter" if launcher == "plain" else 0)
    for name in ("config.yaml", "run.log", "history.csv", "checkpoints", "tensorboard", "loss.png", "metrics.json"):
        assert any(str(path).startswith(str(run / name)) for path in first), name
    metrics, of_torchrun = (
        json.loads(next((launched / name / "runs" / "manifest").glob("*/metrics.json")).read_text())
        for name in (launcher, "torchrun")
    )
    assert "make/top1" in metrics["test"]
    assert all(metrics[split] == of_torchrun[split] for split in ("train", "val", "test"))


def only_in_share(rank: int, num_photos: int) -> int:
    """Return a photo that only this one of two processes reads in the first epoch."""
    samplers = [TrainSampler(np.zeros(num_photos), 4, rank=r, world_size=2) for r in (rank, 1 - rank)]
    own, other = ({row for keys in sampler for row, _ in keys} for sampler in samplers)
    return min(own - other)


def errors(ended: list) -> list[str]:
    """Return the lines of errors; require status 1 of all processes, and nothing else printed of the error."""
    text = "".join(process.stdout + process.stderr for process in ended)
    assert [process.returncode for process in ended] == [1] * len(ended), text
    assert not any(word in text for word in ("Traceback", "frame #", "[rank", "[W")), text
    return [line for line in text.splitlines() if line.startswith("error:")]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_bad_photo_of_one_process_ends_both_in_a_line(tmp_path, rank):
    data = processes.write_manifest(tmp_path / "data", {"train": 21, "val": 7, "test": 5})
    row = only_in_share(rank, 21)
    (tmp_path / "data" / "photos" / f"train_{row}.png").write_bytes(b"no photo")
    arguments = [*COMMAND, *data, *SMALL, "data.on_bad_image=error", "run.dir=mine"]
    lines = errors(processes.run_all([(arguments, processes.environment())], tmp_path))
    assert len(lines) == 1 and f"train_{row}.png: not a supported image" in lines[0]
    assert not (tmp_path / "mine").exists()  # so that the same command works once the photo is fixed


def test_a_process_that_waits_for_a_failed_one_is_ended(tmp_path):
    """The data is missing on the second machine, and the first waits for it to connect."""
    data = processes.write_manifest(tmp_path / "data", {"train": 9, "val": 3, "test": 3})
    shutil.copytree(tmp_path / "data", tmp_path / "gone")
    (tmp_path / "gone" / "photos" / "train_0.png").unlink()
    port = processes.free_port()
    theirs = [value.replace(str(tmp_path / "data"), str(tmp_path / "gone")) for value in data]
    commands = [([*COMMAND, *own, *SMALL], processes.by_srun(rank, 2, port)) for rank, own in enumerate((data, theirs))]
    lines = errors(processes.run_all(commands, tmp_path))
    assert len(lines) == 1 and "train_0.png" in lines[0]
