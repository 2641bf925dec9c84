"""Every message of small programs is changed on its way: nobody honest may read a wrong result.

Under `spdz2k` each message, by its kind, step and direction, is changed `TRIES` times in ways drawn
by a fixed seed; `make tamper` tries all ways, and prints the counts. `ring64` and CrypTen promise
nothing of the kind, and do accept wrong results, which shows that the changes are ones that matter.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, product

import pytest
from torch import Tensor

from privtrain.core.errors import TamperedShareError
from privtrain.core.extras import is_missing, missing
from privtrain.core.runtime import Party
from privtrain.mpc.ring64.engine import Ring64
from privtrain.mpc.ring64.session import Ring64Session
from privtrain.mpc.sharing import PRECISION_BITS, encode
from privtrain.mpc.spdz2k import check, engine
from privtrain.mpc.spdz2k.check import Strength
from privtrain.mpc.spdz2k.engine import FINISHED, SPDZ2k
from privtrain.mpc.spdz2k.ring import payload
from privtrain.mpc.spdz2k.series import SIGMOID_ERROR
from privtrain.mpc.spdz2k.wires import PartyWires
from tests.contracts.engine import Bounds
from tests.mpc import forgery
from tests.mpc.changed_messages import Change, Kind, Network, Place
from tests.mpc.crypten.tampered import Tampers
from tests.mpc.ring64.mesh import Ran, names_of
from tests.mpc.spdz2k.deviating import (
    FlipsTags,
    OffAtOpening,
    OffDealt,
    OffMACs,
    OffMasks,
    OtherBitKey,
    OtherKey,
    OtherUnit,
    Reads,
    Skips,
    Wires,
    wired,
)
from tests.mpc.tampered_programs import CHECKS, TEXTS, Text
from tests.mpc.tampering import Outcome, Suite, Verdict, table
from tests.mpc.test_engine import CRYPTEN, RING64
from tests.runtimes.forked import Forked

Pair = tuple[Tensor, Tensor]

SPDZ2K = SPDZ2k()
UNIT = 2.0**-14
BOUNDS = Bounds(product=UNIT, scaled=UNIT, softmax=1e-3, sigmoid=SIGMOID_ERROR + 2 * UNIT)

TRIES = 30
FEWER = {"logistic step": 3, "mlp step": 1}
"""A program of many steps, each of which has a program of its own here."""

OPENED = ("masked share", "result share", "proof")
"""Kinds of openings."""


def put_in(text: Text, place: Place, honest: Tensor, changed: Tensor) -> Pair | None:
    """The values of a run in which a party changes what is its own input."""
    if place.kind != "masked input" or changed.shape != honest.shape:
        return None
    # Shares of x have a proof, and come first; those of y are inputs of either party.
    at = place.number if text.taken else int(place.sender[-1])
    if text.taken and at != 1:
        return None
    held = [text.x, text.y]
    held[at] = payload(encode(held[at]) + changed - honest).double() / 2.0**PRECISION_BITS
    return held[0], held[1]


SUITE = Suite(SPDZ2K, BOUNDS, inputs=put_in)


def failures(outcomes: Sequence[Outcome]) -> str:
    """Wrong results that were accepted, changes that nobody noticed, and errors that are not meant
    or do not say of what they are, a line each."""
    bad = (Verdict.ACCEPTED, Verdict.CRASHED)
    lines = [
        f"{each.verdict}: {each.place} {each.change}: {each.why}"
        for each in outcomes
        if each.verdict in bad or unnoticed(each) or unnamed(each)
    ]
    return "\n".join([*lines[:20], f"{len(lines)} of {len(outcomes)}"] if lines else [])


def unnoticed(outcome: Outcome) -> bool:
    """Whether an opened payload was changed, even where that changed no result."""
    caught = outcome.verdict in (Verdict.CAUGHT, Verdict.REFUSED)
    return outcome.place.kind in OPENED and outcome.differs and not caught


def unnamed(outcome: Outcome) -> bool:
    """Whether a computing party that hears the other one does not say what was changed."""
    (sender, to, kind, _), error = outcome.place, outcome.errors.get(outcome.place.to)
    if error is None or "dealer" in (sender, to):
        return False
    says = (
        rf"in steps? \d+(?: to \d+)? \('|\(step 'proof'\)|The 'material' message|"
        rf"Expected the '{kind}' of {sender}"
    )
    said = f"{error}"
    tampered = isinstance(error, TamperedShareError)
    return not (tampered and re.search(says, said) and "read nothing of it" in said)


@pytest.mark.parametrize("name", TEXTS)
def test_spdz2k_never_gives_out_a_wrong_result(name: str) -> None:
    outcomes = list(SUITE.tried(TEXTS[name], FEWER.get(name, TRIES), seed=name))
    assert not failures(outcomes), failures(outcomes)
    counts = Counter(each.verdict for each in outcomes)
    assert counts[Verdict.UNCHANGED] < len(outcomes) / 4 and counts[Verdict.CAUGHT] > 0


@pytest.mark.parametrize("name", ["mul", "matmul", "relu", "largest", "sigmoid"])
def test_spdz2k_without_checks_would_give_out_wrong_results(name: str) -> None:
    class Unchecked(PartyWires):
        def check(self) -> None:
            """Nothing."""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "PartyWires", Unchecked)
        outcomes = list(SUITE.tried(TEXTS[name], 4, seed=name))
    assert Verdict.ACCEPTED in {each.verdict for each in outcomes}, table(outcomes, place_of)


def test_messages_of_another_session_are_caught() -> None:
    text = replace(TEXTS["mul"], sessions=2)
    honest = SUITE.honest(text)
    for place in honest.places():
        # As many as the session before sent, and those that tell both apart.
        before = -(-len(honest.sent[place.flow]) // 2)
        if place.number < before or place.kind == "masked input":
            continue
        for consistent in (False, True):
            change = Change(Kind.BEFORE, before, consistent=consistent)
            outcome = SUITE.tampered(text, honest, place, change, place)
            assert not failures([outcome]), failures([outcome])
            refused = outcome.verdict in (Verdict.CAUGHT, Verdict.REFUSED)
            assert refused or place.kind in ("material taken", FINISHED), outcome


def test_checks_that_memory_makes_due_are_checks_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "MOST_PENDING", 0)
    text = replace(TEXTS["mul"], kinds=("masked share", *CHECKS))
    outcomes = list(SUITE.tried(text, 2, seed="each opening is checked"))
    assert not failures(outcomes), failures(outcomes)
    openings = len({each.place.number for each in outcomes if each.place.kind == "masked share"})
    # Before the reveal nothing is left to check.
    assert len({each.place.number for each in outcomes if each.place.kind == "coin"}) > openings


ERRORS = tuple(1 << bit for bit in (0, 14, 43, 44, 60, 63))


def deviated(text: Text, rank: int, wires: Wires, others: Wires = PartyWires) -> Ran:
    """A run in which a party has wires of its own."""
    both = (wires, others) if rank == 0 else (others, wires)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "PartyWires", wired(*both))
        return SUITE.run(text, Network())


def off_at_openings(name: str, every: bool) -> Iterator[tuple[Verdict, int, str]]:
    """Runs in which a party adds an error to what it opens, and goes on with what was opened.

    Args:
        name: Of the program.
        every: Whether both parties add each error, to one element and to all of them, or one of
            these in turn.
    """
    text = TEXTS[name]
    sent = SUITE.honest(text).sent
    openings = sum(len(sent["computing-0", "computing-1", kind]) for kind in OPENED)
    ways = list(product((0, 1), (False, True)))
    for opening, (number, error) in product(range(1, openings + 1), enumerate(ERRORS)):
        for rank, many in ways if every else [ways[(opening + number) % 4]]:
            wires = partial(OffAtOpening, opening=opening, error=error, many=many)
            verdict, why = SUITE.verdict(text, deviated(text, rank, wires), f"computing-{rank}")
            yield verdict, error, f"{name} {rank} {opening} {error} {many}: {verdict}, {why}"


@pytest.mark.parametrize("name", [name for name in TEXTS if name not in FEWER])
def test_a_party_that_goes_on_with_its_errors_is_caught(name: str) -> None:
    for verdict, error, said in off_at_openings(name, every=False):
        # What is above the payload changes nothing, where it is not noticed.
        assert verdict is Verdict.CAUGHT or (verdict is Verdict.NO_EFFECT and error >> 44), said


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("wires", "names"),
    [
        (OffMasks, ("mul", "relu", "softmax")),
        (OffDealt, ("mul", "matmul", "sigmoid")),
        (OffMACs, ("own", "mul")),
        (partial(FlipsTags, flips=1), ("positive", "relu", "largest")),
        (partial(FlipsTags, flips=1 << 63), ("positive", "relu", "largest")),
        (OtherUnit, ("own", "mul", "to rank 0", "to rank 1")),
        (OtherKey, ("own", "take", "matmul")),
        # Where few bits are opened, what it says may be the same by chance.
        (OtherBitKey, ("mlp step",)),
    ],
)
def test_a_party_that_computes_something_else_is_caught(
    wires: Wires, names: Sequence[str], rank: int
) -> None:
    for name in names:
        verdict, why = SUITE.verdict(
            TEXTS[name], deviated(TEXTS[name], rank, wires), f"computing-{rank}"
        )
        assert verdict is Verdict.CAUGHT, f"{name}: {verdict}, {why}"


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("skipped", [0, 1])
def test_without_a_check_before_a_reveal_a_wrong_result_is_read(skipped: int, rank: int) -> None:
    text, told = TEXTS["mul"], list[Tensor]()
    wires = partial(Reads, skipped=skipped, opening=1, error=1 << 24, told=told)
    ran = deviated(text, rank, wires, partial(Skips, skipped=skipped))
    assert set(ran.payloads) <= {f"computing-{rank}", "dealer"}
    assert bool(told) is bool(skipped)
    if skipped:
        values = [payload(integers).double() * UNIT for integers in told]
        assert SUITE.wrong(dict(zip(text.plain(), values, strict=True)), text.plain())


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("skipped", "verdict"), [(0, Verdict.CAUGHT), (2, Verdict.ACCEPTED)])
def test_without_a_check_behind_a_reveal_a_wrong_result_is_accepted(
    skipped: int, verdict: Verdict, rank: int
) -> None:
    wires = partial(OffAtOpening, skipped=skipped, opening=1, error=1 << 20)
    ran = deviated(TEXTS["own"], rank, wires, partial(Skips, skipped=skipped))
    assert SUITE.verdict(TEXTS["own"], ran, f"computing-{rank}")[0] is verdict


@pytest.mark.tamper
@pytest.mark.timeout(7200)
def test_spdz2k_never_gives_out_a_wrong_result_whatever_is_changed() -> None:
    outcomes = list[Outcome]()
    for name, text in TEXTS.items():
        outcomes += SUITE.tried(text, None, seed=name)
    for by in (place_of, kind_of, bit_of):
        print("", table(outcomes, by), sep="\n")
    assert not failures(outcomes), failures(outcomes)


@pytest.mark.tamper
@pytest.mark.timeout(7200)
def test_a_party_that_goes_on_with_any_of_its_errors_is_caught() -> None:
    counts = Counter[tuple[int, Verdict]]()
    for verdict, error, said in chain(*(off_at_openings(name, every=True) for name in TEXTS)):
        assert verdict is Verdict.CAUGHT or (verdict is Verdict.NO_EFFECT and error >> 44), said
        counts[error.bit_length() - 1, verdict] += 1
    for (bit, verdict), count in sorted(counts.items()):
        print(f"error 2^{bit}: {count} {verdict}")


def place_of(outcome: Outcome) -> str:
    place = outcome.place
    return f"{place.kind}, {place.sender} to {place.to}"


def kind_of(outcome: Outcome) -> str:
    change = outcome.change
    return f"{change.kind}, {'also at' if change.consistent else 'not at'} the sender"


def bit_of(outcome: Outcome) -> str:
    change = outcome.change
    if change.kind is not Kind.FLIP:
        return "other"
    return f"bit {change.bit:2} of {'many' if change.many else 'one'}"


@pytest.mark.parametrize("name", ["own", "mul", "relu", "to rank 1"])
def test_ring64_gives_out_wrong_results(name: str) -> None:
    outcomes = list(Suite(Ring64(), RING64).tried(TEXTS[name], 6, seed=name))
    assert not [each for each in outcomes if each.verdict is Verdict.CRASHED], failures(outcomes)
    masked = [each for each in outcomes if each.place.kind in ("masked share", "result share")]
    accepted = [each for each in masked if each.verdict is Verdict.ACCEPTED]
    # Of what only the deviating party reads, nobody honest accepts anything.
    assert len(accepted) > len(masked) * (0.25 if TEXTS[name].readers else 0.5), table(
        outcomes, lambda each: each.place.kind
    )
    # What the dealer deals is sealed.
    dealt = {each.verdict for each in outcomes if each.place.kind == "material"}
    assert dealt <= {Verdict.CAUGHT, Verdict.REFUSED}


@pytest.mark.slow
def test_crypten_gives_out_wrong_results() -> None:
    if is_missing("crypten"):
        pytest.skip(str(missing("This test", "crypten")))
    program = Tampers(("own", "mul", "relu"), 2, CRYPTEN)
    replies = Forked(timeout=60).run(dict.fromkeys(names_of(2), program), {})
    for reply in replies.values():
        for accepted, without_effect in (count.tolist() for count in reply.payload.values()):
            assert accepted > (accepted + without_effect) / 4


def test_a_right_result_is_none_that_differs_beyond_its_bound() -> None:
    suite, wanted = Suite(Ring64(), RING64), TEXTS["mul"].plain()
    assert not suite.wrong(wanted, wanted)
    near = {name: value + RING64.product / 2 for name, value in wanted.items()}
    assert not suite.wrong(near, wanted)
    for off in (2 * RING64.product, -1.0, float("nan")):
        far = {"product": wanted["product"].clone()}
        far["product"][0, 1] += off
        assert suite.wrong(far, wanted) == ["product"]
    assert suite.wrong({"product": wanted["product"][:, :1]}, wanted) == ["product"]


@pytest.mark.parametrize("consistent", [False, True])
def test_a_consistent_party_goes_on_with_what_it_sent(consistent: bool) -> None:
    suite, text = Suite(Ring64(), RING64), TEXTS["own"]
    place = Place("computing-0", "computing-1", "result share", 0)
    change = Change(Kind.ADD, many=True, consistent=consistent)
    outcome = suite.tampered(text, suite.honest(text), place, change, 1)
    assert outcome.verdict is Verdict.ACCEPTED
    assert outcome.at_sender is consistent


def test_a_result_of_other_inputs_is_no_wrong_one_where_the_message_is_an_input() -> None:
    def inputs(text: Text, place: Place, honest: Tensor, changed: Tensor) -> Pair:
        added = (changed - honest).double() / 2.0**PRECISION_BITS
        x, y = added[: text.x.numel()], added[text.x.numel() :]
        return text.x + x.view(text.x.shape), text.y + y.view(text.y.shape)

    # Here, where results are the inputs themselves, shares of results may pass for inputs.
    text, place = TEXTS["own"], Place("computing-1", "computing-0", "result share", 0)
    change = Change(Kind.FLIP, 20, many=True)
    for suite, verdict in (
        (Suite(Ring64(), RING64, inputs=inputs), Verdict.OTHER_INPUT),
        (Suite(Ring64(), RING64), Verdict.ACCEPTED),
    ):
        assert suite.tampered(text, suite.honest(text), place, change, 2).verdict is verdict


@dataclass(frozen=True)
class Crashes(Ring64):
    """Stumbles over values that no honest run has."""

    @contextmanager
    def open(self, party: Party) -> Iterator[Ring64Session]:
        with super().open(party) as session:
            yield session
            raise IndexError("beyond the table")


def test_what_came_of_a_run_is_told_apart() -> None:
    text, place = TEXTS["mul"], Place("dealer", "computing-1", "material", 0)
    suite = Suite(Ring64(), RING64)
    honest = suite.honest(text)
    flip, shorter = Change(Kind.FLIP, 3), Change(Kind.SHORTER)
    masked = Place("computing-0", "computing-1", "masked share", 0)

    def verdict(place: Place, change: Change, engine: Ring64 = Ring64()) -> Verdict:
        return Suite(engine, RING64).tampered(text, honest, place, change, 0).verdict

    assert verdict(place, flip) is Verdict.CAUGHT
    assert verdict(masked, shorter) is Verdict.REFUSED
    assert verdict(Place("computing-1", "dealer", "material taken", 0), flip) is Verdict.NO_EFFECT
    assert verdict(Place("computing-0", "dealer", "nothing", 0), flip) is Verdict.UNCHANGED
    assert verdict(masked, flip, Crashes()) is Verdict.CRASHED


@pytest.mark.parametrize("s", [2, 4, 6])
@pytest.mark.parametrize("keys", [1, 3])
def test_how_often_a_forgery_passes_by_counting_and_by_formula(s: int, keys: int) -> None:
    assert forgery.exact(s, keys) == pytest.approx(forgery.closed(s, keys))
    assert math.log2(forgery.exact(s, keys)) <= -Strength(s, keys).error_bits
    # With one row of coefficients more keys do not help.
    assert forgery.exact(s, keys, shared=True) > 2.0**-s
