"""Attacks: what an observer can learn from its view."""
