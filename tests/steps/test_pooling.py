"""Pooling rows costs what the rows weigh."""

import torch

from privtrain.core.parties import CURATOR_NAME
from privtrain.core.seeding import OnceOnly, SeededEntropy, Seeds
from privtrain.core.task import FederatedData, Rows
from privtrain.core.trainer import Run
from privtrain.core.transcript import Transcript
from privtrain.ledgers.run import JournalLedger
from privtrain.steps.pooling import pool, pooling_cost


def a_run() -> Run:
    return Run(
        ledger=JournalLedger(()),
        transcript=Transcript(keep_payloads=True),
        seeds=Seeds(0),
        entropy=OnceOnly(SeededEntropy(0)),
    )


def rows(start: int, count: int) -> Rows:
    inputs = torch.arange(start, start + 3 * count, dtype=torch.float32).reshape(count, 3)
    return Rows(inputs, torch.arange(count))


def test_every_row_and_label_is_sent_once_to_the_curator() -> None:
    data = FederatedData(train={"a": rows(0, 2), "b": rows(6, 4)}, test=rows(0, 1))
    run = a_run()
    pooled = pool(data, run)
    assert pooled.inputs.flatten().tolist() == [float(i) for i in range(18)]
    assert pooled.labels.tolist() == [0, 1, 0, 1, 2, 3]
    entries = [(e.sender, e.receiver, e.kind, e.bytes) for e in run.transcript.entries]
    assert entries == [
        ("a", CURATOR_NAME, "rows", 24),
        ("a", CURATOR_NAME, "labels", 16),
        ("b", CURATOR_NAME, "rows", 48),
        ("b", CURATOR_NAME, "labels", 32),
    ]


def test_a_single_party_is_its_own_curator() -> None:
    run = a_run()
    pool(FederatedData(train={"a": rows(0, 2)}, test=rows(0, 1)), run)
    assert run.transcript.entries == []


def test_columns_are_put_side_by_side_and_labels_sent_by_their_holder_alone() -> None:
    from privtrain.core.task import COLUMNS

    left, right = rows(0, 2), Rows(torch.tensor([[7.0], [8.0]]))
    data = FederatedData(
        train={"a": right, "b": left}, test=rows(0, 1), split=COLUMNS, label_holder="b"
    )
    run = a_run()
    pooled = pool(data, run)
    assert pooled.inputs.tolist() == [[7.0, 0.0, 1.0, 2.0], [8.0, 3.0, 4.0, 5.0]]
    assert pooled.labels.tolist() == [0, 1]
    assert [e.kind for e in run.transcript.entries if e.sender == "a"] == ["rows"]


def test_by_public_figures_pooling_costs_what_so_many_rows_weigh() -> None:
    data = FederatedData(train={"a": rows(0, 2), "b": rows(6, 4)}, test=rows(0, 1))
    run = a_run()
    pooled = pool(data, run)
    assert pooling_cost(data, pooled, 6).bytes_sent == run.transcript.bytes_sent == 120
    assert pooling_cost(data, pooled, 6).rounds == run.transcript.rounds
    # From the shape of a row alone: that nothing is there must not show either.
    assert pooling_cost(data, rows(0, 0), 10).bytes_sent == 200
    assert pooling_cost(data, pooled, None).bytes_sent is None
    alone = FederatedData(train={"a": rows(0, 2)}, test=rows(0, 1))
    assert (pooling_cost(alone, rows(0, 2), None).bytes_sent) == 0
