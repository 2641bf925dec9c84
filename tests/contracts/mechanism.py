"""What every mechanism promises, and the statistics that catch broken ones."""

import math
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from torch import Tensor

from privtrain.accounting.epsilon import evaluate
from privtrain.core.observers import Exposure
from privtrain.core.seeding import Stream
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, ZERO_OUT
from privtrain.mechanisms.mechanism import Mechanism, is_secure, noised

RELATIONS = (ADD_REMOVE, REPLACE_ONE, ZERO_OUT)
PUBLIC_SUM = Exposure(single_messages=False, knows_sample=False, noise_known=0.0)
ALL_KNOWN = Exposure(single_messages=True, knows_sample=True, noise_known=1.0)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def drawn(mechanism: Mechanism, like: Tensor, seed: int = 0, fraction: float = 1.0) -> Tensor:
    start = mechanism.init(like)
    if is_secure(mechanism):
        key = Stream(seed.to_bytes(32, "little"))
        return noised(mechanism, torch.zeros_like(like), start, key, fraction=fraction)[0]
    noise, _ = mechanism.noise(like, start, generator(seed), fraction=fraction)
    return noise


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
    like = torch.zeros(3)
    with pytest.raises(TypeError):
        mechanism.noise(like, mechanism.init(like), generator(), 1.0)  # type: ignore[misc] # that is what is tested


def noise_follows_the_generator_alone(mechanism: Mechanism) -> None:
    like = torch.zeros(50)
    assert torch.equal(drawn(mechanism, like, 1), drawn(mechanism, torch.ones(50), 1))
    assert torch.equal(drawn(mechanism, like, 1), drawn(mechanism, like, 2)) != mechanism.noisy


def noise_is_never_reused(mechanism: Mechanism) -> None:
    """Two draws from one generator differ: reused noise would cancel."""
    if is_secure(mechanism):
        return  # it starts from a stream, and entropy gives each stream once
    like, source = torch.zeros(50), generator()
    first, state = mechanism.noise(like, mechanism.init(like), source)
    second, _ = mechanism.noise(like, state, source)
    assert torch.equal(first, second) != mechanism.noisy


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
    if not mechanism.noisy or mechanism.init(like) is not None:
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
        assert (found < float("inf")) == mechanism.noisy
        assert found > 0


def a_larger_scale_promises_more(mechanism: Mechanism) -> None:
    scaled = [mechanism.with_scale(scale) for scale in (1.0, 2.0, 8.0)]
    if not mechanism.noisy:
        assert scaled == [None] * 3 or all(m is not None and m.noisy for m in scaled)
        return
    epsilons = []
    for one in scaled:
        assert one is not None
        assert type(one) is type(mechanism)
        assert one.sensitivity(ADD_REMOVE) == mechanism.sensitivity(ADD_REMOVE)
        epsilons.append(evaluate(one.event(PUBLIC_SUM, ZERO_OUT), 1e-5, ZERO_OUT).epsilon)
    assert epsilons[0] > epsilons[1] > epsilons[2] > 0


def noise_that_is_noisy_has_a_bound(mechanism: Mechanism) -> None:
    if mechanism.noisy:
        for relation in RELATIONS:
            found = mechanism.sensitivity(relation)
            assert found is not None
            assert 0 < found < float("inf")
        assert mechanism.theorem


CHECKS: tuple[Callable[[Mechanism], None], ...] = (
    is_a_frozen_value,
    noise_is_like_what_is_noised,
    a_part_of_the_noise_is_asked_for_by_name,
    noise_follows_the_generator_alone,
    noise_is_never_reused,
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
