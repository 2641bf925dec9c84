"""No share, mask, key or value is printed: not by any part of the engines, in an error or a log."""

import dataclasses
import importlib
import pickle
import pkgutil
import re
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import privtrain.mpc
from privtrain.core.errors import PrivtrainError, TamperedShareError
from privtrain.core.runtime import Party, Payload
from privtrain.mpc.ring64.wires import MASKED
from privtrain.mpc.sharing import encode
from privtrain.mpc.spdz2k.engine import SPDZ2k
from tests.mpc.ring64.mesh import Change, attempt, unchanged
from tests.mpc.ring64.test_session import shared

SECRET = (
    *("Tensor", "Shared", "ndarray", "uint64", "bytes", "bytearray", "memoryview"),
    *("Keystream", "BoundKeystream", "Form"),
)
"""Types, by name, of fields that may hold a secret."""

PUBLIC = {
    # Initial weights, which everybody knows.
    ("Linear", "weight"),
    ("Linear", "bias"),
    ("Conv2d", "weight"),
    ("Conv2d", "bias"),
}


def parts() -> Iterator[type]:
    for found in pkgutil.walk_packages(privtrain.mpc.__path__, "privtrain.mpc."):
        if ".crypten" in found.name:
            continue  # needs an extra, and its values are CrypTen's
        module = importlib.import_module(found.name)
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == found.name:
                yield value


PARTS = sorted(
    {part for part in parts() if dataclasses.is_dataclass(part)}, key=lambda p: p.__name__
)


def printed_secrets(part: type) -> list[str]:
    """Fields of a part that its `repr` shows and that may hold a secret."""
    shown = []
    for each in dataclasses.fields(part):
        words = str(each.type).replace("|", " ").replace("[", " ").replace("]", " ").split()
        names = {word.rpartition(".")[2].strip("'>,") for word in words}
        if (
            each.repr
            and "Callable" not in names
            and names & set(SECRET)
            and (part.__name__, each.name) not in PUBLIC
        ):
            shown.append(each.name)
    return shown


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_no_part_prints_what_it_holds(part: type) -> None:
    assert printed_secrets(part) == []


def test_a_part_that_prints_is_seen() -> None:
    @dataclasses.dataclass
    class Careless:
        key: bytes
        masks: Sequence[Tensor] | None
        bits: NDArray[np.uint8]
        size: int

    assert printed_secrets(Careless) == ["key", "masks", "bits"]
    assert len(PARTS) > 15


VALUE = 1234.53125


@dataclass(frozen=True)
class Talks:
    """Prints what a session of spdz2k is made of, at every role, and says what is secret in it.

    Args:
        said: By role, what was printed.
        secrets: By role, integers that nobody may read.
    """

    said: dict[str, str] = dataclasses.field(default_factory=dict)
    secrets: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        secrets = self.secrets[party.name] = []
        try:
            with SPDZ2k().open(party) as session:
                wires: Any = session.wires
                secrets += [int(wires._bit_key), *integers(wires.unit[1:])]
                secrets += integers(wires._keys) if session.deals else []
                value = shared(session, party, torch.full((3, 3), VALUE), 0)
                product, bits = value.matmul(value), session.positive(value)
                for each in (value, product, bits):
                    secrets += integers(each.share.words)
                check = None if session.deals else wires._check
                parts = [session, wires, check, value, product, bits, product.share, SPDZ2k()]
                self.said[party.name] = "".join(f"{part} {part!r} {[part]}" for part in parts)
                session.reveal([product, bits], kind="result share")
        except PrivtrainError as error:
            self.said[party.name] += "".join(traceback.format_exception(error))
            self.said[party.name] += str(pickle.dumps(error)) + str(
                pickle.loads(pickle.dumps(error))
            )
            raise
        return {}


def integers(words: Tensor) -> list[int]:
    return [int(each) for each in words.reshape(-1)]


def told(said: str, secrets: Sequence[int]) -> set[int]:
    """Secrets in what was said, as decimal, hexadecimal or bytes; small ones are anywhere."""
    numbers = {int(each) for each in re.findall(r"-?\d+", said)}
    found = set()
    for each in secrets:
        octets = (each % 2**64).to_bytes(8, "little")
        forms = (octets.hex(), octets[::-1].hex(), repr(octets)[2:-1])
        if abs(each) > 1000 and ({each, each % 2**64} & numbers or any(f in said for f in forms)):
            found.add(each)
    return found


def tampered(sender: str, to: str, kind: str, tensor: Tensor) -> Tensor:
    return tensor + 1 if (sender, kind) == ("computing-0", MASKED) else tensor


@pytest.mark.parametrize("change", [unchanged, tampered])
def test_sessions_of_spdz2k_print_no_key_mask_or_value(change: Change) -> None:
    program = Talks()
    ran = attempt(program, engine=SPDZ2k(), change=change)
    caught = {name for name, each in ran.errors.items() if isinstance(each, TamperedShareError)}
    assert caught == ({"computing-0", "computing-1"} if change is tampered else set())
    everybody = [secret for secrets in program.secrets.values() for secret in secrets]
    assert len(everybody) > 200
    value = encode(torch.tensor(VALUE))
    everybody += [*integers(value), int(VALUE * 2**14)]
    for said in program.said.values():
        assert "Spdz2kSession" in said and not told(said, everybody)
        assert f"{VALUE:g}" not in said
    # What would be seen, if it was there.
    for shown in (str(everybody[0]), f"{everybody[0] % 2**64:016x}", str(value)):
        assert told(shown, everybody)
