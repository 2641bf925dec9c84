"""Releases: contributions are bounded, aggregated, noised and finished in one place."""
