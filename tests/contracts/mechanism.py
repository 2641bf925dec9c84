"""What every mechanism promises, and the statistics that catch broken ones."""

import math
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from privtrain.accounting.epsilon import evaluate
from privtrain.core.observers import Exposure
from privtrain.core.seeding import Stream
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, ZERO_OUT
from privtrain.mechanisms.discrete import quantised
from privtrain.mechanisms.mechanism import About, Mechanism

RELATIONS = (ADD_REMOVE, REPLACE_ONE, ZERO_OUT)
PUBLIC_SUM = Exposure(single_messages=False, knows_sample=False, noise_known=0.0)
ALL_KNOWN = Exposure(single_messages=True, knows_sample=True, noise_known=1.0)


def stream(seed: int = 0) -> Stream:
    return Stream(seed.to_bytes(32, "little"))


def drawn(mechanism: Mechanism, like: Tensor, seed: int = 0, fraction: float = 1.0) -> Tensor:
    """The noise of a first release of tensors like this one."""
    zeros = torch.zeros_like(like)
    return mechanism.add(zeros, None, stream(seed), fraction=fraction)[0]


def is_a_frozen_value(mechanism: Mechanism) -> None:
    copy = pickle.loads(pickle.dumps(mechanism))
    assert copy == mechanism
    assert hash(copy) == hash(mechanism)
    assert type(mechanism).__name__ in repr(mechanism)
    with pytest.raises(FrozenInstanceError):
        mechanism.anything = 1  # type: ignore[attr-defined] # that is what is tested


def noise_is_like_what_is_noised(mechanism: Mechanism) -> None:
    for shape in ((), (3,), (2, 5), (0,), (1, 2, 3)):
        for dtype in (torch.float32, torch.float64):
            like = torch.full(shape, 7.0, dtype=dtype)
            noise = drawn(mechanism, like)
            assert (noise.shape, noise.dtype, noise.device) == (like.shape, dtype, like.device)
            assert bool(torch.isfinite(noise).all())
            assert torch.equal(like, torch.full(shape, 7.0, dtype=dtype))


def a_part_of_the_noise_is_asked_for_by_name(mechanism: Mechanism) -> None:
    with pytest.raises(TypeError):
        mechanism.add(torch.zeros(3), None, stream(1), 1.0)  # type: ignore[misc] # that is what is tested


def noise_follows_the_stream_alone(mechanism: Mechanism) -> None:
    zeros, total = torch.zeros(50, dtype=torch.float64), torch.linspace(-3, 4, 50).double()
    noise, (both, _) = drawn(mechanism, zeros, 1), mechanism.add(total, None, stream(1))
    if mechanism.about.grid is None:
        assert torch.equal(both, noise + total)
    else:  # the sum is rounded to the grid first
        assert torch.allclose(both - noise, total, rtol=0, atol=mechanism.about.grid)
    assert torch.equal(noise, drawn(mechanism, zeros, 1))
    assert torch.equal(noise, drawn(mechanism, zeros, 2)) != mechanism.about.noisy


def noise_is_never_reused(mechanism: Mechanism) -> None:
    """Two releases in a row differ, and so do values of one: reused noise would cancel."""
    zeros = torch.zeros(50)
    first, state = mechanism.add(zeros, None, stream(1))
    second, _ = mechanism.add(zeros, state, stream(2))
    assert torch.equal(first, second) != mechanism.about.noisy
    assert len(first.unique()) == (50 if mechanism.about.noisy else 1)


def sum_and_state_are_left_as_they_are(mechanism: Mechanism) -> None:
    total, state = torch.ones(50), None
    for step in range(4):
        before = pickle.dumps(state)
        released, after = mechanism.add(total, state, stream(step))
        assert torch.equal(total, torch.ones(50))
        assert pickle.dumps(state) == before
        if mechanism.about.noisy:
            released.fill_(math.nan)  # whoever receives what is released may change it
        again, _ = mechanism.add(total, after, stream(step))
        assert bool(torch.isfinite(again).all())
        state = after


def what_it_remembers_is_said(mechanism: Mechanism) -> None:
    _, state = mechanism.add(torch.zeros(3), None, stream())
    assert (state is not None) == (mechanism.about.separation > 1)


def what_it_is_agrees_with_what_it_does(mechanism: Mechanism) -> None:
    about = mechanism.about
    assert about == mechanism.about
    assert [field.name for field in fields(about)] == [field.name for field in fields(About)]
    assert about.separation >= 1
    assert about.noisy or about.grid is None
    assert all(isinstance(text, str) and text for text in about.assumptions)
    if about.l2_bound is not None:
        assert about.l2_bound == mechanism.sensitivity(ADD_REMOVE)
        wild = torch.full((9,), 1e6, dtype=torch.float64)
        assert float(mechanism.bound(wild).norm()) <= about.l2_bound * (1 + 1e-12)


def what_is_released_lies_on_the_grid(mechanism: Mechanism) -> None:
    """As whole numbers it can be masked and added up: nothing is rounded a second time."""
    grid = mechanism.about.grid
    if grid is None:
        return
    total = torch.linspace(-3, 4, 500, dtype=torch.float64) * grid * 2.0**48
    released, _ = mechanism.add(total, None, stream(1))
    noise, whole = drawn(mechanism, total, 1), total.numpy()
    multiples = quantised(released.numpy(), grid)
    assert torch.equal(torch.from_numpy(multiples * grid), released)
    # As whole numbers were added: rounded sums plus what was drawn.
    assert (multiples == quantised(whole, grid) + quantised(noise.numpy(), grid)).all()


def a_charge_after_the_fact_is_an_event_or_none(mechanism: Mechanism) -> None:
    realised = mechanism.realised(torch.tensor([[9.0, 1.0], [3.0, 7.0]], dtype=torch.float64))
    if realised is not None:
        # It is about winners, and so is what was planned for those who see nothing else.
        winners = replace(PUBLIC_SUM, finish_only=True, winner_only=True)
        planned = mechanism.event(winners, ZERO_OUT)
        assert type(realised) is type(planned)
        assert evaluate(realised, 1e-5, ZERO_OUT).epsilon < float("inf")


def noise_leaves_the_global_generators_alone(mechanism: Mechanism) -> None:
    before, numbers = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index, union-attr] # the legacy state is a tuple
    drawn(mechanism, torch.zeros(10))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numbers  # type: ignore[index, union-attr] # as above


def bounding_twice_changes_nothing(mechanism: Mechanism) -> None:
    contribution = torch.linspace(-3, 4, 12).view(3, 4)
    once = mechanism.bound(contribution)
    assert once.shape == contribution.shape
    assert torch.equal(mechanism.bound(once), once)
    assert torch.equal(contribution, torch.linspace(-3, 4, 12).view(3, 4))


def honest_sum(mechanism: Mechanism, contributions: int, dtype: torch.dtype) -> Tensor:
    """What an honest party adds up: contributions far above the bound, each bounded."""
    source = torch.Generator().manual_seed(contributions)
    wild = [1e3 * torch.randn(6, 7, generator=source).to(dtype) for _ in range(contributions)]
    bounded = [mechanism.bound(one) for one in wild]
    # As `Release.leave` adds them, in the type of the contributions.
    return bounded[0] if contributions == 1 else torch.stack(bounded).sum(dim=0)


def an_honest_sum_keeps_its_bits(mechanism: Mechanism) -> None:
    for contributions in (1, 2, 17):
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            total = honest_sum(mechanism, contributions, dtype)
            assert mechanism.bound_again(total, contributions) is total


def a_deviating_sum_is_brought_back_once(mechanism: Mechanism) -> None:
    if mechanism.sensitivity(ADD_REMOVE) is None:
        return  # no bound, which statements say
    honest = honest_sum(mechanism, 3, torch.float64)
    for broken in (1e300, math.nan, math.inf, -math.inf, 1e5):
        sent = honest.clone()
        sent[0, 0] = broken
        kept = mechanism.bound_again(sent, 3)
        assert kept is not sent
        assert bool(torch.isfinite(kept).all())
        assert mechanism.bound_again(kept, 3) is kept
        assert float(kept.abs().max()) <= 3 * max(1.0, mechanism.sensitivity(ADD_REMOVE) or 0)


def own_noise_is_kept_and_more_is_not(mechanism: Mechanism) -> None:
    like = torch.zeros(6, 7, dtype=torch.float64)
    if not mechanism.about.noisy or mechanism.about.separation > 1:
        return
    for seed in range(50):
        sent = honest_sum(mechanism, 2, torch.float64) + drawn(mechanism, like, seed)
        reach = mechanism.reach(sent, 2, fraction=1.0)
        assert reach.kept
        # A larger noise reaches further; one contribution less does not.
        assert mechanism.reach(sent, 1, fraction=1.0).radius < reach.radius
    for broken in (1e300, math.nan, math.inf, 2.1 * reach.radius):
        sent = torch.zeros_like(like)
        sent[5, 6] = broken
        assert not mechanism.reach(sent, 2, fraction=1.0).kept


def nothing_is_promised_where_all_noise_is_known(mechanism: Mechanism) -> None:
    for relation in RELATIONS:
        event = mechanism.event(ALL_KNOWN, relation)
        assert evaluate(event, 1e-5, relation).epsilon == float("inf")


def something_is_promised_exactly_where_noise_is_drawn(mechanism: Mechanism) -> None:
    for relation in (ADD_REMOVE, ZERO_OUT):
        found = evaluate(mechanism.event(PUBLIC_SUM, relation), 1e-5, relation).epsilon
        assert (found < float("inf")) == mechanism.about.noisy
        assert found > 0


def a_larger_scale_promises_more(mechanism: Mechanism) -> None:
    scaled = [mechanism.with_scale(scale) for scale in (1.0, 2.0, 8.0)]
    if not mechanism.about.noisy:
        assert scaled == [None] * 3 or all(m is not None and m.about.noisy for m in scaled)
        return
    epsilons = []
    for one in scaled:
        assert one is not None
        assert type(one) is type(mechanism)
        assert one.sensitivity(ADD_REMOVE) == mechanism.sensitivity(ADD_REMOVE)
        epsilons.append(evaluate(one.event(PUBLIC_SUM, ZERO_OUT), 1e-5, ZERO_OUT).epsilon)
    assert epsilons[0] > epsilons[1] > epsilons[2] > 0


def noise_that_is_noisy_has_a_bound(mechanism: Mechanism) -> None:
    if mechanism.about.noisy:
        for relation in RELATIONS:
            found = mechanism.sensitivity(relation)
            assert found is not None
            assert 0 < found < float("inf")
        assert mechanism.about.theorem


CHECKS: tuple[Callable[[Mechanism], None], ...] = (
    is_a_frozen_value,
    noise_is_like_what_is_noised,
    a_part_of_the_noise_is_asked_for_by_name,
    noise_follows_the_stream_alone,
    noise_is_never_reused,
    sum_and_state_are_left_as_they_are,
    what_it_remembers_is_said,
    what_it_is_agrees_with_what_it_does,
    what_is_released_lies_on_the_grid,
    a_charge_after_the_fact_is_an_event_or_none,
    noise_leaves_the_global_generators_alone,
    bounding_twice_changes_nothing,
    an_honest_sum_keeps_its_bits,
    a_deviating_sum_is_brought_back_once,
    own_noise_is_kept_and_more_is_not,
    nothing_is_promised_where_all_noise_is_known,
    something_is_promised_exactly_where_noise_is_drawn,
    a_larger_scale_promises_more,
    noise_that_is_noisy_has_a_bound,
)
