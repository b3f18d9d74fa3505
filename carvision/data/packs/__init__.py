"""Packs: a data set in shards (tar files), written, verified, fetched and read."""
