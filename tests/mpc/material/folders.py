"""Stores of a few blocks."""

from collections.abc import Iterable
from pathlib import Path

from privtrain.mpc.material.sealing import Sealer
from privtrain.mpc.material.store import Store
from privtrain.mpc.material.writer import StoreWriter

KEY = bytes(range(32))
STUDY, RECEIVER = "5f" * 32, "computing-0"
OPERATIONS = ("matmul", "relu")
STEPS = 4


def content(step: int, operation: str) -> bytes:
    """Of each use another one, of its own length."""
    return f"material of {operation} in step {step};".encode() * (step + 1)


def uses(steps: Iterable[int] = range(STEPS)) -> list[tuple[int, str]]:
    return [(step, operation) for step in steps for operation in OPERATIONS]


def fill(
    folder: Path, *, segment: int = 1, study: str = STUDY, receiver: str = RECEIVER
) -> list[bytes]:
    """Two blocks a step for four steps, in segments of a block each where nothing else is said."""
    sealer = Sealer(KEY, study=study, receiver=receiver)
    sealed = [sealer.seal(content(*use), step=use[0], operation=use[1]) for use in uses()]
    with StoreWriter(folder, KEY, study=study, receiver=receiver, segment=segment) as writer:
        for block in sealed:
            writer.add(block)
    return sealed


def a_store(folder: Path) -> Store:
    return Store(folder, study=STUDY, receiver=RECEIVER)


def take(store: Store, step: int, operation: str) -> bytes:
    return store.take(step, operation, len(content(step, operation)))
