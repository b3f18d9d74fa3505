"""Compare exact nearest-neighbour searches, in one process: carvision, faiss' flat index, scikit-learn's brute force.

    python scripts/bench_retrieval.py --out retrieval.json
    python scripts/bench_retrieval.py --k 100 --threads 1
    python scripts/bench_retrieval.py memory                      peak memory of each, a process of its own

Embeddings have length 1 and form classes (--per-class photos each, --spread: how far they are from the centre of their
class) or, with --per-class 0, are random. Queries are the gallery. The candidates take turns; a ratio is of
times of the same round, by the first's. Also prints the share of neighbours at the same rank as faiss'; the others are
pairs that float32 cannot distinguish. faiss is no dependency: pip install faiss-cpu, or it is left out.
"""

import argparse
import importlib.util
import json
import resource
import sys
from pathlib import Path

import numpy as np
from side_by_side import machine, measure, rows_as_table, summarise, table, write

from carvision.system.runtime import keep_freed_memory, set_thread_defaults

OURS, FAISS, SKLEARN = "carvision", "faiss flat", "scikit-learn brute"
HAS_FAISS = importlib.util.find_spec("faiss") is not None
CANDIDATES = [*([FAISS] if HAS_FAISS else []), OURS, SKLEARN]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=["time", "memory"], default="time")
    parser.add_argument("--num", type=int, default=16_000, help="embeddings")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--per-class", type=int, default=80, help="0: no classes")
    parser.add_argument("--spread", type=float, default=0.6)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--distance", choices=["cosine", "l2"], nargs="+", default=["cosine", "l2"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=CANDIDATES)
    parser.add_argument("--out", type=Path, help="a file for all measurements, as JSON")
    parser.add_argument("--alone", choices=CANDIDATES, help=argparse.SUPPRESS)  # in this process
    options = parser.parse_args()
    set_thread_defaults()  # as carvision's commands do; before OpenMP starts
    keep_freed_memory()
    if options.alone:
        return print(json.dumps(peak_of(options)))
    found = {"time": measure_times, "memory": measure_memory}[options.part](options)
    write(options.out, {"machine": machine(), "options": {**vars(options), "out": str(options.out)}, **found})


def made(options: argparse.Namespace) -> np.ndarray:
    """Return embeddings, float32 (num, width)."""
    random = np.random.default_rng(0)
    embeddings = random.standard_normal((options.num, options.width), np.float32)
    if options.per_class:
        centres = random.standard_normal((-(-options.num // options.per_class), options.width), np.float32)
        embeddings = centres[np.arange(options.num) // options.per_class] + options.spread * embeddings
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def search_by(name: str, distance: str, embeddings: np.ndarray, k: int):
    """Return a function without arguments that returns scores and rows."""
    if name == OURS:
        from carvision.metrics.neighbours import nearest

        return lambda: nearest(embeddings, embeddings, k, distance)
    if name == FAISS:
        import faiss

        index = (faiss.IndexFlatIP if distance == "cosine" else faiss.IndexFlatL2)(embeddings.shape[1])
        index.add(embeddings)
        return lambda: index.search(embeddings, k)
    from sklearn.neighbors import NearestNeighbors

    metric = {"cosine": "cosine", "l2": "euclidean"}[distance]
    model = NearestNeighbors(n_neighbors=k, algorithm="brute", metric=metric).fit(embeddings)
    return lambda: model.kneighbors(embeddings)


def set_threads(number: int) -> None:
    """Set the number of threads of all libraries in this process."""
    import threadpoolctl
    import torch

    if HAS_FAISS:
        import faiss

        faiss.omp_set_num_threads(number)
    threadpoolctl.threadpool_limits(number)
    torch.set_num_threads(number)


def measure_times(options: argparse.Namespace) -> dict:
    set_threads(options.threads)
    embeddings, found = made(options), {}
    for distance in options.distance:
        runs = {name: search_by(name, distance, embeddings, options.k) for name in options.candidates}
        rows = {name: run()[1] for name, run in runs.items()}  # also the warm-up
        same = {name: float((rows[name] == rows[FAISS]).mean()) for name in runs} if FAISS in runs else {}
        samples = measure(runs, options.rounds, memory=False)
        summary = summarise(samples, baseline=options.candidates[0])
        print(f"\n{distance}, k = {options.k}, {options.threads} threads; same as faiss': {same}")
        print(table(summary, ["wall_s", "cpu_s"]), flush=True)
        found[distance] = {"samples": samples, "summary": summary, "same": same}
    return found


def measure_memory(options: argparse.Namespace) -> dict:
    """Return the peak memory above that of the process with its libraries and the embeddings."""
    rest = [word for word in sys.argv[1:] if word != "memory"]
    found = {}
    for distance in options.distance:
        command = [sys.executable, __file__, *rest, "--distance", distance, "--alone"]
        samples = measure({name: [*command, name] for name in options.candidates}, rounds=1, memory=False)
        found[distance] = {name: rounds[0]["above_mb"] for name, rounds in samples.items()}
        print(f"\n{distance}, MB above the embeddings and the libraries")
        print(rows_as_table(["", "MB"], [[name, f"{mb:.0f}"] for name, mb in found[distance].items()]), flush=True)
    return found


def peak_of(options: argparse.Namespace) -> dict[str, float]:
    import torch

    set_threads(options.threads)
    torch.ones(8, 8) @ torch.ones(8, 8)
    run = search_by(options.alone, options.distance[0], made(options), options.k)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak
    before = peak_mb()
    run()
    return {"above_mb": peak_mb() - before}


def peak_mb() -> float:
    """Return the peak memory since it was reset, on Linux; elsewhere since the process started."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
