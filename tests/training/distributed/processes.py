"""Processes of one run, in the environment of torchrun or srun, and photos for them."""

import contextlib
import json
import os
import re
import socket
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from tests import forked

ROOT = Path(__file__).resolve().parents[3]
TIMEOUT_S = 300


def write_manifest(folder: Path, num: dict[str, int], bad: bool = False) -> list[str]:
    """Write noisy photos of 4 models of 2 makes; return the overrides. Some labels of model and price are unknown.

    num: {split: photos}. bad: two photos of each split can't be read.
    """
    random = np.random.default_rng(0)
    (folder / "photos").mkdir(parents=True)
    rows = []
    for split, i in ((split, i) for split, count in num.items() for i in range(count)):
        model = int(random.choice(4, p=[0.4, 0.3, 0.2, 0.1]))
        pixels = random.integers(0, 150, (40, 40, 3), dtype=np.uint8)
        pixels[..., model % 3] += 20 + 10 * model
        path = f"photos/{split}_{i}.png"
        Image.fromarray(pixels).save(folder / path)
        if bad and i in (1, 4):
            (folder / path).write_bytes(f"no photo: {path}".encode())
        known, priced = (random.random(2) < 0.7).tolist()
        rows.append([path, split, f"make{model // 2}", f"m{model}" * known, str(1000.0 * (model + 1)) * priced])
    pd.DataFrame(rows, columns=["path", "split", "make", "model", "price"]).to_csv(folder / "table.csv", index=False)
    return [
        "data=manifest", f"data.root={folder}", "data.file=table.csv", "data.labels=[make,model]",
        "data.numbers=[price]", "data.on_bad_image=skip",
    ]  # fmt: skip


def free_port() -> int:
    with contextlib.closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environment(**variables: object) -> dict[str, str]:
    """Return a process's environment on the CPU: this one's, without what a launcher may have set."""
    of_launchers = re.compile(r"SLURM_|MASTER_|TORCHELASTIC_|(LOCAL_|NODE_|GROUP_)?RANK$|WORLD_SIZE$")
    ours = {name: value for name, value in os.environ.items() if not of_launchers.match(name)}
    path = os.pathsep.join([str(ROOT), ours.get("PYTHONPATH", "")])
    ours |= {"CUDA_VISIBLE_DEVICES": "", "TORCH_CPP_LOG_LEVEL": "ERROR", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return ours | {name: str(value) for name, value in variables.items()}


def by_torchrun(rank: int, num: int, port: int) -> dict[str, str]:
    """Return the environment of one of several processes on a machine, without torchrun's agent."""
    return environment(
        RANK=rank, LOCAL_RANK=rank, GROUP_RANK=0, WORLD_SIZE=num, LOCAL_WORLD_SIZE=num, MASTER_ADDR="127.0.0.1",
        MASTER_PORT=port, TORCHELASTIC_RUN_ID="none",
    )  # fmt: skip


def by_srun(rank: int, num: int, port: int) -> dict[str, str]:
    """Return the environment of one of several tasks of srun on a machine."""
    return environment(
        SLURM_JOB_ID=1, SLURM_STEP_ID=0, SLURM_JOB_NAME="train", SLURM_NTASKS=num, SLURM_NTASKS_PER_NODE=num,
        SLURM_NNODES=1, SLURM_PROCID=rank, SLURM_LOCALID=rank, SLURM_NODEID=0, SLURM_NODELIST="127.0.0.1",
        MASTER_PORT=port,
    )  # fmt: skip


def run_all(commands: list[tuple[list[str], dict[str, str]]], cwd: Path, first: str = ""):
    """Run processes (module and arguments, environment) at the same time, forked; those that they start are not. The
    first that fails ends all, as with torchrun and srun. first: Python code that each runs before."""
    outs = [cwd.parent / f"{cwd.name}.{number}" for number in range(len(commands))]
    started = [
        forked.start(*words, cwd=cwd, env=variables, out=out, first=first)
        for (words, variables), out in zip(commands, outs, strict=True)
    ]
    forked.wait_until(lambda: any(p.exitcode for p in started) or all(p.exitcode == 0 for p in started), TIMEOUT_S)
    for process in started:
        process.terminate()
    return forked.finish(started, outs, TIMEOUT_S)


def train_together(num: int, runs: list[tuple[Path, list[str]]], status: int = 0, signalled=None) -> None:
    """Train the runs (folder, overrides) one after another, all by the same `num` processes.

    <folder>.losses.json gets the loss of every training step, the mean over the processes. status: of all processes.
    signalled: (rank, signal): sent in the second step of the second epoch.
    """
    port = free_port()
    ranks = [by_torchrun(rank, num, port) if num > 1 else environment() for rank in range(num)]
    started = [forked.process(_train_all, variables, runs, signalled, daemon=True) for variables in ranks]
    for process in started:
        process.start()
    try:
        for process in started:
            process.join(TIMEOUT_S)
        assert [process.exitcode for process in started] == [status] * num
    finally:
        for process in started:
            process.kill()


def _train_all(variables: dict[str, str], runs: list[tuple[Path, list[str]]], signalled: tuple | None) -> None:
    os.environ.clear()
    os.environ.update(variables)
    from carvision.errors import one_line_errors
    from carvision.training.distributed.collectives import gather_objects
    from carvision.training.module import LitClassifier
    from tests.small_runs import train

    losses, step = [], LitClassifier.training_step

    def recording_step(self: LitClassifier, batch, batch_idx):
        if signalled and (self.current_epoch, batch_idx, self.global_rank) == (1, 1, signalled[0]):
            os.kill(os.getpid(), signalled[1])
        loss = step(self, batch, batch_idx)
        losses.append(loss.item())
        return loss

    LitClassifier.training_step = recording_step
    with one_line_errors():
        for folder, overrides in runs:
            losses.clear()
            train(folder, *overrides)
            mean = np.mean(gather_objects(losses), axis=0).tolist()
            Path(f"{folder}.losses.json").write_text(json.dumps(mean), encoding="utf-8")  # the same by all
