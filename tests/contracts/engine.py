"""What every engine promises: each method of a session, who opens what, refusals, lost parties."""

import os
import pickle
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from privtrain.core.errors import PartyLostError, UnsupportedError
from privtrain.core.links import Link
from privtrain.core.runtime import MeshRuntime, Party, Payload, link_of
from privtrain.mpc.convolution import Windows, conv2d, sums
from privtrain.mpc.engine import Engine, check_parties, with_helpers
from privtrain.mpc.keystream import Keystream
from privtrain.mpc.proofs import prove
from privtrain.mpc.sharing import encode, share
from tests.mpc.one_party import OpenSession

TIMEOUT = 20.0
SLACK = 4.0
"""Seconds for ending processes on a busy machine."""


@dataclass(frozen=True)
class Bounds:
    """How far results may be from float64, as the engine's page and tests state it."""

    product: float
    scaled: float
    softmax: float
    sigmoid: float = 0.0
    exact: float = 0.0


class Case(NamedTuple):
    """An engine and the mesh that its parties run on."""

    engine: Engine
    runtime: MeshRuntime
    bounds: Bounds
    parties: int

    @property
    def names(self) -> list[str]:
        return [f"computing-{rank}" for rank in range(self.parties)]

    def run(self, program: Any) -> dict[str, Payload]:
        programs = with_helpers(self.engine, dict.fromkeys(self.names, program))
        replies = self.runtime.run(programs, {})
        assert list(replies) == [*self.names, *self.engine.helper_names]
        return {name: reply.payload for name, reply in replies.items()}


def drawn(*shape: int) -> Tensor:
    """Values up to a few tens, of all signs, that fixed point holds exactly."""
    values = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 6
    return (values * 2**12).round() / 2**12


X, Y, TIES = drawn(12, 8), drawn(8, 5), torch.tensor([1.0, 3, 2, 3, -5]).double()
IMAGES, KERNELS = drawn(2, 3, 5, 5), drawn(2, 3, 3, 3)
WINDOWS = Windows((3, 3), (2, 2), (1, 1))


def convolution(images: Tensor, kernels: Tensor) -> Tensor:
    return conv2d(images, kernels, windows=WINDOWS, groups=1)


def pooling(images: Tensor) -> Tensor:
    return sums(images, windows=WINDOWS)


Dealt = tuple[list[Tensor], list[Tensor | None]]
"""Shares of one party, and its part of their proofs."""

Share = Callable[[Any, Tensor, int], Any]
"""Shares a tensor of the party of a rank."""


def of_matrices(s: Any, share: Share) -> dict[str, Any]:
    """Each method by the kind of its bound and its name; of plain tensors, its plain twin."""
    x, y, ties = share(s, X, 0), share(s, Y, 1), share(s, TIES, 1)
    larger, above = s.relu(x)
    cat = torch.cat if isinstance(x, Tensor) else x.cat
    return {
        "exact own": x,
        "exact public": s.public(Y),
        "exact add": x[:8, :5] + y,
        "exact add public": x + 0.5 + Y[:, 0],
        "exact sub": x[:8, :5] - y,
        "exact sub from": 1 - x,
        "exact item": x[torch.tensor([3, 0, 3]), 1:],
        "exact t": x.t(),
        "exact sum": x.sum(0, keepdim=True) + x.sum(1)[:8],
        "exact reshape": x.reshape(4, x.size(0), 2),
        "exact cat": cat([x, x.t().reshape(12, 8)], 1),
        "exact join": s.join([x[:8, :5], y], dim=0),
        "exact mul whole": x * -3,
        "exact mul bits": x * above,
        "exact relu": larger,
        "exact relu bits": above,
        "exact positive": s.positive(x * -1),
        "exact gt": x.gt(0.5),
        "exact lt": x.lt(0.5),
        "exact largest": s.largest(ties),
        "exact scale by nothing": s.scale(x, 0.0),
        "product mul": x[:8, :5] * y,
        "product mul public": x * 2.5,
        "product square": x.square(),
        "product matmul": x.matmul(y),
        "product of a transpose": y.t().matmul(x.t()),
        "product div": x.div(4),
        "product mean": x.mean(1),
        "scaled": s.scale(x, -0.003),
        "scaled up": s.scale(x, 3.75),
        "softmax": s.softmax(x),
        "softmax of a wide row": s.softmax(s.scale(x, 200.0)),
        "softmax of two": s.softmax(x[:, :2]),
    }


def of_more(engine: Engine, s: Any, share: Share) -> dict[str, Any]:
    """What an engine may lack, and says so."""
    x, values = share(s, X, 0), dict[str, Any]()
    if engine.sigmoid:
        values |= {"sigmoid": s.sigmoid(x), "exact maximum": s.maximum(x)}
    if engine.pictures:
        images, kernels = share(s, IMAGES, 1), share(s, KERNELS, 0)
        values["product bilinear"] = s.bilinear(convolution, images, kernels)
        values["exact linear"] = s.linear(pooling, images)
    return values


def plain(engine: Engine) -> dict[str, Tensor]:
    """The same text on plain float64 tensors."""
    values = of_matrices(OpenSession(), lambda session, values, rank: values)
    values |= of_more(engine, OpenSession(), lambda session, values, rank: values)
    return {name: value.double() for name, value in values.items()}


@dataclass(frozen=True)
class Everything:
    """Opens what each method of a session gives, and announces the rank."""

    engine: Engine

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        rank = link_of(party).rank

        def own(session: Any, values: Tensor, owner: int) -> Any:
            held = encode(values, bits=self.engine.row_bits) if rank == owner else None
            return session.own(held, tuple(values.shape), owner)

        with self.engine.open(party) as session:
            said = session.announce(torch.tensor([rank]))
            values = of_matrices(session, own) | of_more(self.engine, session, own)
            shares, proofs = shared(self.engine, link_of(party), (X, TIES))
            taken = session.take_all(shares, proofs=proofs)
            values["exact take"], values["exact take a row"] = taken
            opened = session.reveal(list(values.values()), kind="result share")
            missing = refused(self.engine, session, values["exact own"])
        result = dict(zip(values, opened, strict=True))
        return {**result, "said": torch.cat(said), "refused": torch.tensor(missing)}


def shared(engine: Engine, link: Link, values: Sequence[Tensor]) -> Dealt:
    """A party's shares of values that somebody shared beforehand, and their proofs."""
    stream, parties = Keystream(bytes(32)), len(link.names) - len(engine.helper_names)
    shares, proofs = list[Tensor](), list[Tensor | None]()
    for value in values:
        integers = encode(value, bits=engine.row_bits)
        parts = prove(integers, stream) if engine.authenticated else (None,) * parties
        # Who helps has no rows: it is told shapes.
        none = parts[0] if parts[0] is None else torch.zeros_like(parts[0])
        shares.append([*share(integers, parties, stream), torch.zeros_like(integers)][link.rank])
        proofs.append([*parts, none][link.rank])
    return shares, proofs


def refused(engine: Engine, session: Any, x: Any) -> list[bool]:
    """Which of the methods that an engine says it lacks raise `UnsupportedError`."""
    calls: list[Callable[[], Any]] = []
    if not engine.sigmoid:
        calls += [lambda: session.sigmoid(x), lambda: session.maximum(x)]
    if not engine.pictures:
        calls += [
            lambda: session.bilinear(convolution, x, x),
            lambda: session.linear(pooling, x),
        ]
    found = []
    for call in calls:
        try:
            call()
            found.append(False)
        except UnsupportedError as error:
            found.append("Ring64()" in str(error))
    return found


def each_method_equals_its_plain_twin_at_all_parties(case: Case) -> None:
    replies = case.run(Everything(case.engine))
    first = replies[case.names[0]]
    wanted = plain(case.engine) | {"exact take": X, "exact take a row": TIES}
    assert set(wanted) | {"said", "refused"} == set(first)
    for name, value in wanted.items():
        bound = getattr(case.bounds, name.split()[0])
        assert first[name].shape == value.shape, name
        assert float((first[name] - value).abs().max()) <= bound, name
    assert first["said"].tolist() == list(range(case.parties))
    assert first["refused"].all()
    for other in case.names[1:]:
        for name, value in first.items():
            assert torch.equal(replies[other][name], value), name
    for helper in case.engine.helper_names:
        assert replies[helper] == {}


@dataclass(frozen=True)
class Stops:
    """Multiplies again and again, until one role does the deed in the middle of it."""

    engine: Engine
    culprit: str
    deed: Callable[[], None]

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        rank = link_of(party).rank
        with self.engine.open(party) as session:
            x = session.own(
                encode(X, bits=self.engine.row_bits) if rank == 0 else None, tuple(X.shape), 0
            )
            for number in range(20):
                if number == 2 and party.name == self.culprit:
                    self.deed()
                x = x[:, torch.arange(8)] * session.positive(x)
            opened = session.reveal([x], kind="result share")
        return {"result": opened[0]}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise ZeroDivisionError("one over nothing")


def a_role_that_is_lost_in_the_middle_is_named(case: Case) -> None:
    # A thread dies with its process.
    deed, words = (die, "SIGKILL") if case.runtime.real else (fail, "one over nothing")
    culprits = [case.names[-1], *case.engine.helper_names]
    for culprit in culprits[-1:] if case.runtime.real else culprits:
        began = time.monotonic()
        with pytest.raises(PartyLostError, match=words) as caught:
            case.run(Stops(case.engine, culprit, deed))
        assert caught.value.party == culprit
        assert time.monotonic() - began < TIMEOUT + SLACK


def it_is_a_frozen_value_that_says_what_it_is(case: Case) -> None:
    engine = case.engine
    assert pickle.loads(pickle.dumps(engine)) == engine
    assert engine.name and all(caveat.endswith(".") for caveat in engine.caveats)
    readers = [one.reader for one in engine.input_privacy(case.names)]
    assert set(readers) >= {*case.names, *engine.helper_names}
    engine.check(case.parties)
    for count in (1, engine.most_parties + 1):
        with pytest.raises(UnsupportedError, match=f"not with {count}"):
            engine.check(count)
        with pytest.raises(ValueError, match=f"computing_parties={count}"):
            check_parties(engine, count)


CHECKS = (
    it_is_a_frozen_value_that_says_what_it_is,
    each_method_equals_its_plain_twin_at_all_parties,
    a_role_that_is_lost_in_the_middle_is_named,
)
"""The whole suite."""
