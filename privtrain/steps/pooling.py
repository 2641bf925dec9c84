"""Pooling: parties hand their rows to a curator, who trains on all of them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from privtrain.core.cost import PublicCost
from privtrain.core.parties import CURATOR_NAME
from privtrain.core.result import NOT_KEPT, Members
from privtrain.core.statement import InputPrivacy
from privtrain.core.task import ROWS, FederatedData, Rows, check_party_rows
from privtrain.core.trainer import Run

CURATOR_READS = InputPrivacy(
    reader="curator",
    reads="all training rows",
    honest="the curator",
)
"""The input privacy of training on pooled rows."""


def pool(data: FederatedData, run: Run) -> Rows:
    """All rows at the curator, and in the transcript what sending them there cost.

    Args:
        data: Who holds which rows. A single party is its own curator and sends nothing.
        run: The run whose transcript records the messages.

    Returns:
        All training rows on the run's device.

    Raises:
        DataError: If a party holds no rows, or values that are not finite.
    """
    rows = data.pooled()
    # The curator of a resumed run has the rows already.
    sent = any(entry.receiver == CURATOR_NAME for entry in run.transcript.entries)
    if len(data.parties) > 1 and not sent:
        for party in data.parties:
            held = data.train[party]
            # Where there are many parties, nobody looked at their rows before.
            check_party_rows(party, held)
            run.transcript.send(party, CURATOR_NAME, "rows", held.inputs, round=0)
            if held.targets is not None:
                run.transcript.send(party, CURATOR_NAME, "labels", held.targets, round=0)
            if held.users is not None:
                run.transcript.send(party, CURATOR_NAME, "users", held.users, round=0)
    return rows.to(run.device)


def pooling_cost(data: FederatedData, rows: Rows, number: int | None) -> PublicCost:
    """What pooling costs by public figures.

    Args:
        data: Who holds which rows.
        rows: The pooled rows, of which only the shape of one counts.
        number: How many rows there are, if that is public; None withholds the bytes.
    """
    if len(data.parties) == 1:
        return PublicCost(bytes_sent=0, rounds=0)
    if number is None:
        return PublicCost(bytes_sent=None, rounds=1)
    of_a_row = sum(
        tensor.shape[1:].numel() * tensor.element_size()
        for tensor in (rows.inputs, rows.targets, rows.users)
        if tensor is not None
    )
    return PublicCost(bytes_sent=number * of_a_row, rounds=1)


class UsedRows:
    """Which pooled rows a run used so far, for attacks.

    Args:
        rows: How many rows were pooled.
        eligible: Numbers of those that may take part, shape `(eligible,)`.
    """

    def __init__(self, rows: int, eligible: Tensor) -> None:
        self._rows = rows
        self._eligible = eligible
        self._doubt = ""
        self.marks = torch.zeros(len(eligible), dtype=torch.bool)
        # numpy takes a list of numbers in a fraction of torch's time.
        self._view = self.marks.numpy()

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Takes up the marks of an interrupted run; nothing where there was none."""
        if "used" in saved:
            self.marks.copy_(saved["used"])
        elif saved:
            self._doubt = NOT_KEPT

    def add(self, numbers: list[int]) -> None:
        """Marks rows by their numbers among the eligible ones."""
        self._view[numbers] = True

    def members(self, data: FederatedData) -> Members:
        """The marks of each party's rows."""
        used = torch.zeros(self._rows, dtype=torch.bool)
        used[self._eligible] = self.marks
        names = data.parties
        # Of columns, everybody holds a part of every row.
        if len(names) == 1 or data.split is not ROWS:
            return Members(dict.fromkeys(names, used), self._doubt)
        parts = torch.split(used, [len(data.train[name]) for name in names])
        return Members(dict(zip(names, parts, strict=True)), self._doubt)
