"""Authenticated shares modulo 2^64 between two computing parties, with a dealer beside them."""
