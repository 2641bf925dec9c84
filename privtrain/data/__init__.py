"""Data sets, partitions and files."""
