"""Loads CrypTen where it is installed, for those who fork."""

from contextlib import suppress

from privtrain.core.errors import UnsupportedError
from privtrain.mpc.crypten.engine import load

with suppress(UnsupportedError):
    load()
