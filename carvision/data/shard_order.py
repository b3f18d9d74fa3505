"""Orders that read a pack shard after shard, so that training can begin before all of them are fetched."""

import numpy as np


def shard_sequence(shard: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The numbers of the shards that occur in `shard`, in a random order."""
    return random.permutation(np.unique(shard))


def windowed_order(shard: np.ndarray, window: int, random: np.random.Generator) -> np.ndarray:
    """A permutation of the photos for which about `window` shards are needed at a time. shard: of each photo, (N,).

    The shards begin one after the other, in the order of `shard_sequence` with this generator. The photos of each are
    spread evenly, at random, over the time in which it and the next `window` - 1 begin. So a batch mixes the photos of
    `window` shards, but for the first and last ones.
    """
    sequence = shard_sequence(shard, random)
    start = np.empty(sequence.max() + 1)
    start[sequence] = np.arange(len(sequence))
    return np.argsort(start[shard] + window * random.random(len(shard)), kind="stable")
