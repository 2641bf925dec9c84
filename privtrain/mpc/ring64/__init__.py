"""Additive shares modulo 2^64 between 2 to 5 parties, with a dealer beside them."""
