"""Readers: one function for each data set's layout on disk, which returns a Table."""
