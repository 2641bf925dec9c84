"""Scores of membership attacks as pure functions of arrays: no training, no files, no truth.

Larger means "more likely a member". A row that cannot be scored gets -inf.
"""
