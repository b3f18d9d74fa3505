"""Packs at a URL: fetched as needed, complete and verified, by several processes at once."""

import logging
import multiprocessing
import os
import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from carvision.data.loading.loader import Loader
from carvision.data.loading.samplers import TrainSampler
from carvision.data.packs import remote
from carvision.data.packs.index import read_packed
from carvision.data.packs.remote import Cache, FetchAhead
from carvision.errors import InputError
from tests.data.packs.server import serving
from tests.data.packs.small import NUM, damage, pack_small, photos_of, write_photos


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(remote, "PAUSES_S", (0, 0))
    monkeypatch.setattr(logging.getLogger("carvision"), "propagate", True)  # which a run in this process turns off


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return the source's table and the folder of its pack."""
    folder = tmp_path_factory.mktemp("made")
    table = write_photos(folder / "photos")
    pack_small(table, folder / "pack")
    return table, folder / "pack"


@pytest.fixture
def server(made):
    with serving(made[1]) as server:
        yield server


def read_remote(server, tmp_path, **kwargs):
    return read_packed(server.url, cache=tmp_path / "cache", **kwargs)


def shards_in(folder) -> list[str]:
    return sorted(file.name[17:] for file in folder.glob("*.tar"))


def test_a_pack_at_a_url_is_that_of_the_folder_and_fetched_once(made, server, tmp_path):
    source, folder = made
    table = read_remote(server, tmp_path)
    assert table.rows.equals(read_packed(folder).rows) and table.labels == source.labels
    assert shards_in(tmp_path / "cache") == []  # nothing is fetched before it is needed
    for row, path in enumerate(source.rows["path"]):
        assert table.photo(row).read() == (source.root / path).read_bytes()
    assert read_remote(server, tmp_path).photo(3).read() and not list((tmp_path / "cache").glob("*.partial"))
    assert all(server.asked[shard.name] == 1 for shard in table.shards.all)
    photo = table.photo(7)
    file = photo.shards.file(photo.shard)
    damage(file, photo.offset + 9)
    [reason] = photos_of(read_remote(server, tmp_path))[[(7, -1)]]["reasons"]
    assert f"remove {file}, so that it is fetched again" in reason


@pytest.mark.parametrize("what, reason", [("cut", "tried 3 times; "), ("damage", "SHA-256 differs"), ("refuse", "500")])
def test_a_bad_answer_is_followed_by_other_attempts_and_then_by_one_line(what, reason, server, tmp_path, caplog):
    table = read_remote(server, tmp_path)
    name = table.shards.all[table.photo(0).shard].name
    server.bad[name] = (99, what)
    with pytest.raises(InputError, match=f"data.root: {server.url}/{name} can't be fetched .*{reason}") as error:
        table.photo(0).read()
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").glob(f"*{name}")) and not list((tmp_path / "cache").glob("*.partial"))
    caplog.clear()
    server.bad[name], server.asked[name] = (2, what), 0
    assert len(table.photo(0).read()) == table.rows["_length"][0]
    assert server.asked[name] == 3 and "trying again in 0 s" in caplog.text


def test_a_server_that_sends_more_than_stated_or_too_slowly_is_refused_at_once(server, tmp_path, monkeypatch):
    table = read_remote(server, tmp_path)
    shard = table.shards.all[table.photo(0).shard]
    server.bad = {shard.name: (99, "endless"), "pack.json": (99, "endless")}
    with pytest.raises(InputError, match=rf"{shard.name} can't be fetched \(it has more than the {shard.bytes:,} by"):
        table.photo(0).read()
    assert server.asked[shard.name] == 1 and not list((tmp_path / "cache").glob("*.partial"))
    with pytest.raises(InputError, match=r"pack.json can't be fetched \(it has more than the 16,000,000 bytes"):
        read_remote(server, tmp_path)
    assert server.asked["pack.json"] == 2
    server.bad = {"pack.json": (1, "bomb")}  # which is not decompressed
    with pytest.raises(InputError, match=r"pack.json is not what carvision.pack writes \(can't be read as JSON"):
        read_remote(server, tmp_path)
    monkeypatch.setattr(remote, "GRACE_S", -1)
    monkeypatch.setattr(remote, "MIN_BYTES_PER_S", 10**15)
    with pytest.raises(InputError, match=r"pack.json can't be fetched \([\d,]+ bytes were received in 0 s, which is"):
        read_remote(server, tmp_path)
    assert server.asked["pack.json"] == 4


def test_an_absent_pack_or_server_or_file_system_is_an_error(server, tmp_path):
    with pytest.raises(InputError, match=r"nowhere/pack.json can't be fetched \(it does not exist\)"):
        read_packed(f"{server.url}/nowhere", cache=tmp_path)
    assert server.asked["pack.json"] == 1  # at once
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError, match=r"can't be fetched \(tried 3 times; .*onnect"):
        read_packed(server.url, cache=tmp_path)
    with pytest.raises(InputError, match=r"ftpx://a/b/pack.json: Protocol not known: ftpx; give a folder, or a URL"):
        read_packed("ftpx://a/b", cache=tmp_path)


@pytest.mark.parametrize(("window", "num_workers"), [(None, 0), (None, 3), (2, 3)])
def test_batches_from_a_url_are_those_of_the_folder(window, num_workers, made, server, tmp_path):
    tables = [read_packed(made[1], window=window), read_remote(server, tmp_path, window=window)]
    batches = []
    for table, workers in zip(tables, (0, num_workers), strict=True):
        photos = photos_of(table)
        order = TrainSampler(np.zeros(NUM), 4, seed=3, packed=photos.packed)
        order.set_epoch(2)
        batches.append(list(Loader(photos, order, 4, workers)))
    assert len(batches[0]) == len(batches[1]) == NUM / 4
    for one, other in zip(*batches, strict=True):
        assert all(one[name].equal(other[name]) for name in ("images", "index", "draws", "valid"))
        assert one["reasons"] == other["reasons"] == [None] * 4


def test_training_starts_before_all_is_fetched_and_the_cache_keeps_its_limit_and_foreign_files(made, server, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    foreign = [cache / name for name in ("holiday.tar", f"{'0' * 16}-holiday.tar", "train-00000.tar", "x.partial")]
    for file in foreign:
        file.write_bytes(b"precious" * 10_000)
        os.utime(file, (1e9, 1e9))  # the first to go
    sizes = {shard.name: shard.bytes for shard in read_packed(made[1]).shards.all}
    limit = 5 * max(sizes.values())
    table = read_remote(server, tmp_path, window=2, cache_gb=limit / 1e9)
    photos = photos_of(table)
    for epoch in (0, 1):
        order = TrainSampler(np.zeros(NUM), 2, seed=3, packed=photos.packed)
        order.set_epoch(epoch)
        for number, keys in enumerate(order):
            assert not any(photos[keys]["reasons"])
            if epoch == number == 0:
                assert len(sizes.keys() & shards_in(cache)) < len(table.shards.all) - 1
            assert 0 < sum(sizes.get(name, 0) for name in shards_in(cache)) <= limit < sum(sizes.values())
    assert all(file.read_bytes() == b"precious" * 10_000 for file in foreign)
    assert min(server.asked[shard.name] for shard in table.shards.all) >= 1
    with pytest.raises(InputError, match=r"data.cache_gb: .* a smaller data.shuffle_shards \(4 now\)"):
        read_remote(server, tmp_path, window=4, cache_gb=limit / 1e9)


def _fetch_all(url, cache, started) -> None:
    started.wait()
    table = read_packed(url, cache=cache)
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(table.shards.file, sorted(3 * [*range(len(table.shards.all))])))


def test_several_processes_and_threads_fetch_each_shard_once_and_remove_what_a_kill_left(made, server, tmp_path):
    (tmp_path / "cache").mkdir()
    shard = read_packed(made[1]).shards.all[0]
    left = Cache(tmp_path / "cache").file(shard.name, f"{shard.sha256}").with_suffix(".tar.1.1.partial")
    left.write_bytes(b"of a process that was killed")
    context = multiprocessing.get_context("fork")
    started = context.Event()
    others = [context.Process(target=_fetch_all, args=(server.url, tmp_path / "cache", started)) for _ in range(4)]
    for other in others:
        other.start()
    started.set()
    for other in others:
        other.join(60)
        assert other.exitcode == 0
    names = sorted(shard.name for shard in read_remote(server, tmp_path).shards.all)
    assert shards_in(tmp_path / "cache") == names and {server.asked[name] for name in names} == {1}
    assert not left.exists()


def test_the_next_shards_are_fetched_ahead_by_a_thread_that_ends_with_its_photos():
    fetched = queue.SimpleQueue()
    before = {*threading.enumerate()}
    ahead = FetchAhead(fetched.put, [4, 0, 1, 3, 2], window=1)
    for shard, wanted in ((4, [0, 1]), (0, [3])):
        ahead.reach(shard)
        assert [fetched.get(timeout=60) for _ in wanted] == wanted and fetched.empty()
    (thread,) = {*threading.enumerate()} - before
    del ahead
    thread.join(60)
    assert not thread.is_alive()
