"""Nobody is believed: what a deviating party can and cannot do to a sum."""

import math
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor

from privtrain.core.errors import ProtocolError, UnsoundReleaseError
from privtrain.core.runtime import Payload, Reply, Seen
from privtrain.core.trainer import Run
from privtrain.mechanisms.gaussian import Gaussian, Laplace
from privtrain.mechanisms.mechanism import Exact, Mechanism
from privtrain.mechanisms.votes import GNMax, LNMax
from privtrain.release.arrival import BOUNDED_AGAIN, UNCOUNTED, Expected
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX
from privtrain.release.placement import AT_PARTY, SPLIT, Placement
from privtrain.release.shared import SharedSum
from tests.contracts.aggregation import a_party, a_run

NAMES = tuple(f"client-{number}" for number in range(5))
FORGED = 42.7


def honest(release: Release, dtype: torch.dtype = torch.float32) -> dict[str, Payload]:
    """Messages of honest clients whose updates are far above any bound."""
    source = torch.Generator().manual_seed(1)
    return {
        name: release.leave([torch.randn(40, generator=source).to(dtype)], a_party(name)).message
        for name in NAMES
    }


def with_one(messages: dict[str, Payload], forged: Payload) -> dict[str, Payload]:
    return {**messages, "client-3": forged}


def of_norm(norm: float, values: int = 40) -> Payload:
    update = torch.zeros(values)
    update[7] = norm
    return {"update": update}


def replied(messages: dict[str, Payload]) -> dict[str, Reply]:
    return {name: Reply(message) for name, message in messages.items()}


def arrived(
    release: Release, messages: dict[str, Payload], expected: Expected | None = None
) -> tuple[Tensor, Run]:
    run = a_run()
    released = release.arrive(replied(messages), run, round=0, expected=expected or Expected())
    if released.weight is not None:
        return torch.cat([released.value, released.value.new_tensor([released.weight])]), run
    return released.value, run


ODD = {
    "sparse": torch.ones(40).to_sparse(),
    "without values": torch.ones(40, device="meta"),
    "8 bits": torch.ones(40).to(torch.float8_e4m3fn),
    "of another library": torch.ones(40).to_mkldnn(),
    "complex": torch.ones(40, dtype=torch.complex64),
    "list": [1.0] * 40,
    "nothing": None,
}
"""What cannot be measured or added; torch's own errors name nobody."""


@pytest.mark.parametrize("mechanism", [Exact(), Gaussian(0.3, 0.0), Laplace(0.3, 1.0)])
@pytest.mark.parametrize("odd", ODD)
def test_what_is_no_dense_tensor_of_numbers_is_refused_by_name(
    odd: str, mechanism: Mechanism
) -> None:
    forged = cast("Payload", {"update": ODD[odd]})
    others = with_one(honest(Release(mechanism)), forged)
    for messages in (others, {"client-3": forged, **others}):
        with pytest.raises(ProtocolError, match="of client-3 is of type"):
            arrived(Release(mechanism), messages)


# ------------------------------------------------------------------------- without noise of its own


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "mechanism", [Gaussian(0.3, 0.0), Gaussian(0.3, 1.0), Laplace(0.3, 1.0), Laplace(0.3, 0.0)]
)
def test_honest_messages_keep_their_bits(mechanism: Mechanism, dtype: torch.dtype) -> None:
    release = Release(mechanism)
    messages = honest(release, dtype)
    run = a_run()
    admitted = release.admit(replied(messages), run, round=0)
    for name in NAMES:
        assert admitted[name].message["update"] is messages[name]["update"]
    assert run.outcome.history.unprotected == {}
    assert run.outcome.assumptions == []


@pytest.mark.parametrize("mechanism", [Gaussian(0.3, 0.0), Laplace(0.3, 0.0)])
def test_a_client_that_skips_its_clipping_moves_the_sum_by_the_bound(mechanism: Mechanism) -> None:
    release = Release(mechanism)
    messages = honest(release)
    fair, _ = arrived(release, with_one(messages, of_norm(0.0)))
    for size in (FORGED, 1e30, -FORGED):
        total, run = arrived(release, with_one(messages, of_norm(size)))
        assert float((total - fair).norm()) == pytest.approx(0.3, rel=1e-6)
        assert run.outcome.history.unprotected == {BOUNDED_AGAIN: [(1, 1.0)]}
        # Who it was stands nowhere: who takes part may be a secret.
        assert not any("client" in text for text in (*run.outcome.notes, *run.outcome.assumptions))


def test_the_twin_that_believes_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gaussian, "bound_again", lambda self, total, contributions: total)
    release = Release(Gaussian(0.3, 0.0))
    messages = honest(release)
    fair, _ = arrived(release, with_one(messages, of_norm(0.0)))
    total, _ = arrived(release, with_one(messages, of_norm(FORGED)))
    assert float((total - fair).norm()) == pytest.approx(FORGED, rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_counts_as_zero_and_poisons_nothing(bad: float) -> None:
    release = Release(Gaussian(0.3, 1.0))
    messages = honest(release)
    fair, _ = arrived(release, with_one(messages, of_norm(0.0)))
    total, run = arrived(release, with_one(messages, of_norm(bad)))
    assert torch.equal(total, fair)
    assert run.outcome.history.unprotected == {BOUNDED_AGAIN: [(1, 1.0)]}


def test_a_party_may_add_up_as_many_contributions_as_it_has() -> None:
    release = Release(Gaussian(1.0, 0.0))
    contributions = [torch.tensor([9.0, 0.0])] * 3
    message = release.leave(contributions, a_party("a")).message
    both = Expected(contributions={"a": 3, "b": 1})
    total, run = arrived(release, {"a": message, "b": {"update": torch.tensor([0.0, 3.0])}}, both)
    assert total.tolist() == pytest.approx([3.0, 1.0])
    assert run.outcome.history.unprotected == {BOUNDED_AGAIN: [(1, 1.0)]}
    unknown = Expected(contributions=None)
    total, run = arrived(release, {"a": message}, unknown)
    assert total.tolist() == pytest.approx([3.0, 0.0])
    assert run.outcome.assumptions == [UNCOUNTED]
    with pytest.raises(ProtocolError, match="of a is not finite"):
        arrived(release, {"a": {"update": torch.tensor([math.nan, 0.0])}}, unknown)
    for wrong in (0, {"a": 0}, -1):
        with pytest.raises(ValueError, match="contributions="):
            Expected(contributions=wrong)


@pytest.mark.parametrize("mechanism", [GNMax(1e-6), LNMax(1e-6)])
def test_a_party_casts_no_more_votes_than_it_has_teachers(mechanism: Mechanism) -> None:
    release = Release(mechanism, finish=ARGMAX)
    votes = {
        "a": {"votes": torch.tensor([[2.0, 0.0], [0.0, 2.0]])},
        "b": {"votes": torch.tensor([[0.0, 99.0], [1.0, 0.0]])},
    }
    teachers = Expected(contributions={"a": 2, "b": 1})
    winners = release.arrive(replied(votes), a_run(), round=1, kind="votes", expected=teachers)
    assert winners.value.tolist() == [0, 1]
    believed = Expected(contributions={"a": 2, "b": 99})
    winners = release.arrive(replied(votes), a_run(), round=1, kind="votes", expected=believed)
    assert winners.value.tolist() == [1, 1]


# ---------------------------------------------------------------------------- with noise of its own


@pytest.mark.parametrize("noise_at", [AT_PARTY, SPLIT(honest_survivors=5)], ids=str)
def test_a_message_with_its_own_noise_is_never_scaled_but_refused_by_name(
    noise_at: Placement,
) -> None:
    release = Release(Gaussian(0.3, 0.5), noise_at)
    messages = honest(release)
    run = a_run()
    admitted = release.admit(replied(messages), run, round=0)
    assert all(admitted[name].message["update"] is messages[name]["update"] for name in NAMES)
    # C + std (sqrt(d) + sqrt(2 ln(1 / beta))), std of what one party draws.
    std = 0.15 * math.sqrt(noise_at.fraction)
    radius = 0.3 + std * (math.sqrt(40) + math.sqrt(2 * math.log(2.0**40)))
    for size in (1.001 * radius, FORGED, 1e38, math.nan, -math.inf):
        with pytest.raises(ProtocolError, match=r"Round 0: client-3 sent 'update' of norm"):
            arrived(release, with_one(messages, of_norm(size)))
    arrived(release, with_one(messages, of_norm(0.999 * radius)))
    # The statement says how far that is.
    (text,) = run.outcome.assumptions
    assert f"{radius / 0.3:.3g} times its bound (0.3)" in text
    assert f"{radius:.3g}" in text


def test_the_radius_of_a_split_is_that_of_a_part_of_the_noise() -> None:
    whole, part = (
        Release(Gaussian(1.0, 1.0), noise_at) for noise_at in (AT_PARTY, SPLIT(honest_survivors=25))
    )
    forged = of_norm(5.0)
    arrived(whole, {"client-0": forged})
    with pytest.raises(ProtocolError, match="client-0"):
        arrived(part, {"client-0": forged})


def test_laplace_noise_has_a_radius_in_its_own_norm() -> None:
    release = Release(Laplace(0.3, 0.5), AT_PARTY)
    messages = honest(release)
    t, scale = math.log(2.0**40), 0.15
    radius = 0.3 + scale * (40 + math.sqrt(2 * 40 * t) + t)
    arrived(release, with_one(messages, of_norm(0.999 * radius)))
    with pytest.raises(ProtocolError, match="client-3"):
        arrived(release, with_one(messages, of_norm(1.001 * radius)))


def test_secure_noise_is_held_to_the_same_radius() -> None:
    release = Release(Gaussian(0.3, 0.5, secure=True), AT_PARTY)
    arrived(release, honest(release))
    with pytest.raises(ProtocolError, match="client-3"):
        arrived(release, with_one(honest(release), of_norm(FORGED)))


@pytest.mark.parametrize("mechanism", [GNMax(2.0), LNMax(2.0)])
def test_noised_votes_are_refused_beyond_the_radius_of_a_query(mechanism: Mechanism) -> None:
    release = Release(mechanism, AT_PARTY, finish=ARGMAX)
    scores = torch.eye(3).repeat(10, 1)
    votes = {
        name: release.leave([scores] * 4, a_party(name), kind="votes").message for name in NAMES
    }
    four = Expected(contributions=4, shape=(30, None))
    release.arrive(replied(votes), a_run(), round=0, kind="votes", expected=four)
    votes["client-2"]["votes"][7, 1] = 500.0
    with pytest.raises(ProtocolError, match="client-2 sent 'votes' of norm 5"):
        release.arrive(replied(votes), a_run(), round=0, kind="votes", expected=four)


# ------------------------------------------------------------------ without a bound, and malformed


def test_exact_messages_have_no_bound_but_no_message_poisons_the_sum_unnamed() -> None:
    release = Release()
    messages = honest(release)
    total, run = arrived(release, with_one(messages, of_norm(FORGED)))
    assert float(total[7]) > 30
    assert run.outcome.history.unprotected == {}
    for bad in (math.nan, math.inf):
        with pytest.raises(ProtocolError, match=r"Round 0: the update of client-3 is not finite"):
            arrived(release, with_one(messages, of_norm(bad)))
    huge = {name: {"update": torch.tensor([1.5e308], dtype=torch.float64)} for name in "ab"}
    with pytest.raises(ProtocolError, match="sum of messages 'update' is not finite"):
        arrived(release, huge)
    assert release.trusted("client", "the model") == (
        "messages have no bound: one client can replace the model",
    )


@pytest.mark.parametrize(
    ("forged", "why"),
    [
        ({"update": torch.zeros(1)}, r"shape \(1,\)"),
        ({"update": torch.zeros(())}, r"shape \(\)"),
        ({"update": torch.zeros(40, 1)}, r"shape \(40, 1\)"),
        ({"update": torch.zeros(41)}, r"shape \(41,\)"),
        ({"update": torch.zeros(40, dtype=torch.complex64)}, "complex64"),
        ({"update": torch.zeros(40, dtype=torch.int64)}, "int64"),
        ({"update": torch.zeros(40, dtype=torch.bool)}, "bool"),
        ({"votes": torch.zeros(40)}, "votes"),
        ({}, r"got \[\]"),
    ],
)
@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_malformed_messages_are_refused_by_name(forged: Payload, why: str, first: bool) -> None:
    """Whoever is the first to send is no measure for the others."""
    name = "client-0" if first else "client-3"
    release = Release(Gaussian(0.3, 0.0))
    messages = {**honest(release), name: forged}
    with pytest.raises(ProtocolError, match=f"{name}.*{why}"):
        arrived(release, messages, Expected(shape=(40,)))


def test_whole_numbers_can_be_added_up_exactly() -> None:
    counts = {name: {"update": torch.tensor([1, 2])} for name in "ab"}
    assert arrived(Release(), counts)[0].tolist() == [2.0, 4.0]


def test_what_else_a_reply_holds_changes_nothing() -> None:
    release = Release(Gaussian(0.3, 0.0))
    messages = honest(release)
    total, _ = arrived(release, messages)
    replies = replied(with_one(messages, {**messages["client-3"], "weight": torch.tensor(1e9)}))
    seen = Seen(numbers={"loss": math.nan}, notes=("I weigh 1e9.",), assumptions=("I am honest",))
    replies["client-3"] = replace(replies["client-3"], seen=seen, mail={"p": {"x": torch.ones(1)}})
    run = a_run()
    assert torch.equal(release.arrive(replies, run, round=0).value, total)
    assert (run.outcome.notes, run.outcome.assumptions, run.outcome.history.unprotected) == (
        [],
        [],
        {},
    )


# ----------------------------------------------------------------------------------------- weights


def weighted(update: list[float], weight: float) -> Payload:
    return {"update": torch.tensor([*update, weight])}


def test_a_weight_is_sealed_as_the_last_value_and_never_bounded() -> None:
    release = Release(Gaussian(0.5, 0.0))
    message = release.leave([torch.tensor([3.0, 4.0])], a_party(), weight=451.0).message
    assert set(message) == {"update"}
    assert message["update"].tolist() == pytest.approx([0.3, 0.4, 451.0])
    reply = Release(aggregation=SharedSum()).leave([torch.ones(2)], a_party(), weight=451.0)
    assert reply.message == {}
    assert set(reply.mail) == {"computing-0", "computing-1"}
    assert {sent["update share"].shape for sent in reply.mail.values()} == {(3,)}


def test_half_precision_counts_rows_all_the_same() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        update = torch.ones(2, dtype=dtype)
        message = Release().leave([update], a_party(), weight=100_001.0).message
        assert float(message["update"][-1]) == 100_001.0


@pytest.mark.parametrize("weight", [-1.0, -1e-3, 1.1, 1e9, math.nan, math.inf])
def test_a_forged_weight_is_refused_by_name(weight: float) -> None:
    expected = Expected(shape=(2,), largest_weight=1.0)
    messages = {"a": weighted([1.0, 2.0], 1.0), "b": weighted([1.0, 2.0], weight)}
    with pytest.raises(ProtocolError, match=r"weight that b sent .* in \[0, 1\]"):
        arrived(Release(), messages, expected)


def test_a_weighted_message_is_bounded_without_its_weight() -> None:
    expected = Expected(shape=(2,), largest_weight=math.inf)
    messages = {"a": weighted([3.0, 4.0], 400.0), "b": weighted([0.0, 0.5], 1.0)}
    total, run = arrived(Release(Gaussian(0.5, 0.0)), messages, expected)
    assert total.tolist() == pytest.approx([0.3, 0.9, 401.0])
    assert run.outcome.history.unprotected == {BOUNDED_AGAIN: [(1, 1.0)]}


def test_under_a_bound_a_weight_allows_for_as_many_contributions() -> None:
    """Clipped, then weighed: three rows of 0.5 each add up to 1.5, one row does not."""
    expected = Expected(shape=(2,), largest_weight=math.inf, weight_of_one=0.25)
    release = Release(Gaussian(0.5, 0.0))
    three = torch.tensor([3.0, 4.0])
    honest_message = release.leave([three], a_party(), factor=3.0, weight=0.75).message
    assert honest_message["update"].tolist() == pytest.approx([0.9, 1.2, 0.75])
    total, run = arrived(release, {"a": honest_message}, expected)
    assert total.tolist() == honest_message["update"].tolist()
    assert run.outcome.history.unprotected == {}
    for claimed, allowed in ((0.25, 0.5), (0.0, 0.5), (0.5, 1.0), (0.6, 1.5)):
        forged = {"update": torch.tensor([0.9, 1.2, claimed])}
        total, run = arrived(release, {"a": forged}, expected)
        assert float(total[:-1].norm()) == pytest.approx(min(allowed, 1.5))
        assert bool(run.outcome.history.unprotected) == (allowed < 1.5)
    with pytest.raises(ValueError, match="weight_of_one"):
        Expected(weight_of_one=0.0)


def test_half_precision_is_weighed_where_it_counts() -> None:
    update = torch.tensor([0.3, 0.7], dtype=torch.bfloat16)
    message = Release().leave([update], a_party(), factor=3.0, weight=3.0).message["update"]
    assert message.tolist() == [3 * float(value) for value in update] + [3.0]


def test_no_weight_leaves_beside_noise_and_only_vectors_carry_one() -> None:
    with pytest.raises(UnsoundReleaseError, match="without noise"):
        Release(Gaussian(1.0, 1.0)).leave([torch.ones(2)], a_party(), weight=1.0)
    with pytest.raises(ValueError, match="vector"):
        Release().leave([torch.ones(2, 2)], a_party(), weight=1.0)
    with pytest.raises(ValueError, match="largest_weight"):
        Expected(largest_weight=-1.0)


# ------------------------------------------------------------------------------ what is said of it
