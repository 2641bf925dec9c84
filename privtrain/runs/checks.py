"""What is refused before a run: data, devices, and deltas that would promise nothing."""

import torch

from privtrain.core.errors import READS_ROWS, DataError, UnsoundReleaseError
from privtrain.core.observers import check_observer
from privtrain.core.parties import check_party_names
from privtrain.core.statement import Unit
from privtrain.core.task import FederatedData, check_party_rows
from privtrain.core.trainer import PrivacyPlan
from privtrain.core.validate import check_delta, check_finite
from privtrain.ledgers.run import check_one_plan, epsilon_of
from privtrain.runs.checkpoint import LOADED_BEFOREHAND
from privtrain.sampling.sampling import check_delta_below


def check_data(data: FederatedData) -> None:
    """Refuses data that cannot be trained on.

    Raises:
        DataError: If a party is empty, named like a role, or holds a NaN or an infinity, or there
            are no parties or test rows.
        ValueError: If a value of the test rows is NaN or infinite.
    """
    if not data.parties:
        raise DataError("Expected data.train to hold at least one party; it is empty.")
    check_party_names(data.parties)
    if len(data.test) == 0:
        raise DataError("Expected data.test to hold rows; there are none to measure accuracy on.")
    # One NaN spreads over a whole sum of gradients, and where clipping sets it to zero, the row is
    # silently left out.
    check_finite(test=data.test.inputs)
    # More parties than this are loaded one by one when they are sampled, and checked then.
    if len(data.parties) <= LOADED_BEFOREHAND:
        for party in data.parties:
            check_party_rows(party, data.train[party])


def _population(plan: PrivacyPlan, data: FederatedData) -> int:
    """How many units a plan protects."""
    if plan.unit is Unit.CLIENT:
        return len(data.parties)
    if plan.unit is Unit.USER:
        users = data.pooled().users
        return 1 if users is None else len(set(users.tolist()))
    # The true number of rows may itself be private; then the stated one is all that may be used.
    if data.public_rows is not None:
        return data.public_rows
    # Every party holds a row at least: a bound from below, without loading them all.
    return len(data.pooled()) if len(data.parties) <= LOADED_BEFOREHAND else len(data.parties)


def check_plans(plans: tuple[PrivacyPlan, ...], data: FederatedData, delta: float) -> bool:
    """Refuses plans that promise what nobody could keep, and a delta that empties a guarantee.

    Returns:
        Whether anything is promised to anybody.

    Raises:
        UnsoundReleaseError: If delta is at least one over the number of protected units, or an
            observer has two plans about one unit.
        ValueError: If a plan is about a coalition with a party that is not there.
    """
    check_delta(delta)
    check_one_plan(plans)
    for plan in plans:
        if plan.observer.corrupted:
            check_observer(plan.observer, data.parties)
    # Infinite after one release is infinite after all of them; such a plan needs no delta.
    promising = [plan for plan in plans if epsilon_of(plan, 1, delta) < float("inf")]
    # Who publishes one of n units, chosen at random, is (0, 1/n)-DP: such a delta hides nothing.
    for plan in promising:
        try:
            check_delta_below(delta, _population(plan, data), str(plan.unit))
        except UnsoundReleaseError as error:
            public = plan.unit is Unit.CLIENT or (
                plan.unit is Unit.EXAMPLE and data.public_rows is not None
            )
            # Whether a counted number is reached tells of it; there is no public one to ask.
            raise error if public else UnsoundReleaseError(f"{error} {READS_ROWS}") from None
    return bool(promising)


def check_device(device: str) -> None:
    """Raises `ValueError` if a device is unknown or not there."""
    # torch has no question for "is it there": a tensor has to be made. A build without CUDA raises
    # an AssertionError.
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"Expected device={device!r} to be available here; use 'cpu'. ({error})"
        ) from error
