"""Canaries: rows of which fair coins decide whether they are trained on, for one-run audits.

Including or excluding a row is the add/remove relation, and the unit is an example.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from privtrain.core.errors import DataError, UnsupportedError
from privtrain.core.seeding import SeededEntropy, Seeds
from privtrain.core.task import ROWS, Canaries, FederatedData, Rows, concatenate
from privtrain.core.validate import check_count
from privtrain.data.federation import digest
from privtrain.data.owners import to_users
from privtrain.data.rows import LazyRows

CANARIES_GIVEN = "which canaries there are is given: a copy of a row stays when that row is removed"


@dataclass(frozen=True)
class _Planted:
    """Gives each party its rows and the canaries that were planted there."""

    train: Mapping[str, Rows]
    rows: Mapping[str, Rows]

    def __call__(self, party: str) -> Rows:
        own, planted = self.train[party], self.rows.get(party)
        if planted is None:
            return own
        # Where users are known, canaries have theirs; elsewhere rows belong to nobody.
        return concatenate(
            [own, planted if own.users is not None else replace(planted, users=None)]
        )


def with_canaries(data: FederatedData, rows: Rows, *, seed: int = 0) -> FederatedData:
    """Plants each row with probability 1/2, by a coin of its own.

    The coins depend on nothing but the seed, and come from another stream than all that training
    draws. Canary number i belongs to party number i modulo the number of parties. Where users are
    known, each canary is the only row of a user of its own. The public number of rows grows by half
    the canaries, whatever the coins say.

    Args:
        data: Parties that hold rows, all columns each.
        rows: The canaries, of the same kind as the training rows; see `mislabelled_rows` and
            `noise_rows`. At least one; without users.
        seed: Of the coins. Keep it from whoever must not know them.

    Returns:
        The data that a one-run audit trains on, with `canaries` set.

    Raises:
        DataError: If the rows do not fit the data, name users, or canaries were planted before.
        UnsupportedError: If parties hold columns.

    Source: Steinke, Nasr and Jagielski 2023, Algorithm 1 (arXiv:2305.08846).
    """
    if data.split is not ROWS:
        raise UnsupportedError(
            "Canaries are whole rows, and here parties hold columns. Use a partition by rows."
        )
    if data.canaries is not None:
        raise DataError(
            f"Expected data without canaries; {len(data.canaries)} were planted before. Plant "
            "all of them at once."
        )
    _check_rows(data, rows)
    names = data.parties
    # Algorithm 1: S_i is uniform on {-1, 1}, independently for every canary i; True stands for 1.
    # The stream is one of entropy: no stream of `Seeds`, which are public, shares its bits.
    stream = SeededEntropy(seed)["canaries", 0, ""]
    canaries = Canaries(
        rows=rows, included=torch.from_numpy(stream.numpy().integers(0, 2, len(rows)) == 1)
    )
    # Algorithm 1: canaries with S_i = 1 join the rows that are always there; the others are left
    # out, and serve the auditor only.
    held: dict[str, list[int]] = {}
    for number in canaries.included.nonzero().flatten().tolist():
        held.setdefault(names[number % len(names)], []).append(number)
    # A row of somebody else's would share that user's coin, or be dropped with that user's rows.
    own = replace(rows, users=to_users([f"canary {number}" for number in range(len(rows))]))
    planted = {party: own.take(torch.tensor(index)) for party, index in held.items()}
    # The coins belong to the digest: the same canaries with other coins are other data.
    marked = f"{data.digest}{digest([rows])}{canaries.included.tolist()}"
    return replace(
        data,
        train=LazyRows(names, _Planted(data.train, planted)),
        canaries=canaries,
        # The expected number: sampling rates of the exact one would tell how many coins are heads.
        public_rows=None if data.public_rows is None else data.public_rows + len(rows) // 2,
        name=f"{data.name} with canaries",
        digest=hashlib.sha256(marked.encode()).hexdigest(),
        # Which rows are copied depends on all of them.
        assumptions=(*data.assumptions, CANARIES_GIVEN),
        notes=(*data.notes, f"{len(rows)} canaries, about half of them among the training rows"),
    )


def planted_in(data: FederatedData) -> dict[str, int]:
    """How many canaries were planted behind the rows of each party; those without are left out."""
    if data.canaries is None:
        return {}
    names = data.parties
    holders = data.canaries.included.nonzero().flatten() % len(names)
    return {names[number]: count for number, count in Counter(holders.tolist()).items()}


def canaries_besides(data: FederatedData, names: frozenset[str]) -> Canaries | None:
    """The canaries of all parties but some, who know which of their rows were planted.

    Args:
        data: Parties that hold rows, with or without canaries of `with_canaries`.
        names: Parties whose canaries are left out.

    Returns:
        The other canaries; None where there are none.
    """
    if data.canaries is None or not names:
        return data.canaries
    parties = data.parties
    numbers = range(len(data.canaries))
    index = torch.tensor([n for n in numbers if parties[n % len(parties)] not in names])
    if len(index) == 0:
        return None
    return Canaries(rows=data.canaries.rows.take(index), included=data.canaries.included[index])


def _check_rows(data: FederatedData, rows: Rows) -> None:
    if len(rows) == 0:
        raise DataError("Expected rows to hold at least one canary; they hold none.")
    if rows.users is not None:
        raise DataError(
            "Expected canaries without users: each becomes the only row of a user of its own. Give "
            "Rows(inputs, targets)."
        )
    for name, given, like in (
        ("inputs", rows.inputs, data.test.inputs),
        ("targets", rows.labels, data.test.labels),
    ):
        if given.shape[1:] != like.shape[1:] or given.dtype != like.dtype:
            raise DataError(
                f"Expected canaries with {name} of shape {tuple(given.shape[1:])} and type "
                f"{given.dtype} to be like the data's, {tuple(like.shape[1:])} and {like.dtype}."
            )


def mislabelled_rows(data: FederatedData, count: int, *, seed: int = 0) -> Rows:
    """Copies of training rows with a wrong label, which a model gives only if it trained on them.

    The originals stay where they are, so that the model learns a canary against its original.

    Args:
        data: Parties that hold rows with class numbers.
        count: How many, at most as many as there are training rows.
        seed: Public seed of the choice of rows and labels.

    Returns:
        The canaries, no row copied twice.

    Raises:
        ValueError: If there are fewer training rows.
        DataError: If targets are not numbers of at least two classes.
    """
    check_count(count=count)
    pooled = data.pooled()
    classes = _classes(data)
    if count > len(pooled):
        raise ValueError(f"Expected count={count} <= {len(pooled)}, the number of training rows.")
    generator = Seeds(seed)["mislabelled canaries", 0, ""].torch()
    chosen = pooled.take(torch.randperm(len(pooled), generator=generator)[:count])
    # From 1 on: adding 0 would leave the true label, and a model believes that without a canary.
    shift = torch.randint(1, classes, (count,), generator=generator)
    return Rows(chosen.inputs, (chosen.labels + shift) % classes)


def noise_rows(data: FederatedData, count: int, *, seed: int = 0) -> Rows:
    """Inputs of uniform noise with labels by chance, far from all other rows.

    Args:
        data: Whose test rows say in which range inputs lie, and which classes there are.
        count: How many.
        seed: Public seed of the noise and the labels.

    Returns:
        The canaries.

    Raises:
        DataError: If targets are not numbers of at least two classes.
    """
    check_count(count=count)
    # The range is that of the test rows, which belong to nobody: that of the training rows would
    # be measured on private data.
    like, classes = data.test.inputs, _classes(data)
    generator = Seeds(seed)["noise canaries", 0, ""].torch()
    shape = (count, *like.shape[1:])
    if like.is_floating_point():
        uniform = torch.rand(shape, generator=generator, dtype=like.dtype)
        inputs = like.min() + (like.max() - like.min()) * uniform
    else:  # whole numbers that are looked up, such as tokens
        ends = int(like.min()), int(like.max()) + 1
        inputs = torch.randint(*ends, shape, generator=generator, dtype=like.dtype)
    return Rows(inputs, torch.randint(0, classes, (count,), generator=generator))


def _classes(data: FederatedData) -> int:
    """The number of classes in the test rows."""
    labels = data.test.labels
    if labels.is_floating_point() or labels.ndim != 1 or int(labels.max()) < 1:
        raise DataError(
            f"Expected targets of shape {tuple(labels.shape)} and type {labels.dtype} to be "
            "numbers of two or more classes; make canaries of another kind yourself."
        )
    return int(labels.max()) + 1
