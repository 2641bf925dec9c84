"""Correlated randomness that a dealer prepared: sealed, bounded, bound to its use, used once."""
