"""Packs: data sets in shards (tar files). Write, verify, fetch and read them."""
