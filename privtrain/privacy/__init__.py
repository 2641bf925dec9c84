"""Bounding, noise, accounting and the ledger that pays for releases."""
