"""carvision.pack as people run it, and after a kill."""

import os
import signal
import time

import pytest

from tests import forked
from tests.data.layouts import write_class_folders


def contents(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@pytest.mark.slow
def test_after_a_kill_the_same_command_keeps_complete_shards_and_writes_the_others(run_forked, tmp_path):
    write_class_folders(tmp_path / "photos", {"oak": 150, "ash": 150})
    command = ["carvision.pack", "data=folder", "data.root=photos", "shard_mb=0.01", "num_workers=1"]
    run_forked(*command, "out=whole", check=0)
    pack, whole = tmp_path / "pack", tmp_path / "whole"
    killed = forked.start(*command, "out=pack", cwd=tmp_path, out=tmp_path / "killed")
    deadline = time.monotonic() + 120
    while len(list(pack.glob("*.tar"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.join()
    kept = {file: file.stat().st_mtime_ns for file in (pack / "packing").glob("unsplit*.json")}
    assert len(kept) < len(list(whole.glob("*.tar"))) and not (pack / "pack.json").exists()
    assert f"{len(kept)} of " in run_forked(*command, "out=pack", check=0).stderr
    assert contents(pack) == contents(whole)
    assert all(file.stat().st_mtime_ns == when for file, when in kept.items())


def test_verify_names_the_damaged_shard(run_forked, tmp_path):
    write_class_folders(tmp_path / "photos", {"oak": 12, "ash": 12})
    overrides = ["data=folder", "data.root=photos", "data.split.kind=stratified", "shard_mb=0.01", "num_workers=0"]
    done = run_forked("carvision.pack", *overrides, "out=pack", check=0)
    assert done.stdout.startswith("24 photos, ") and done.stdout.splitlines()[-1] == "pack: pack"
    verify = ["carvision.pack", "verify=pack", "num_workers=0"]
    assert run_forked(*verify, check=0).stdout.startswith("All shards are whole")
    shard = tmp_path / "pack" / "val-00000.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    done = run_forked(*verify, check=1)
    assert done.stdout.startswith(f"val-00000.tar: it has {shard.stat().st_size:,} bytes instead of")
