"""What benchmarks of computing on shares count, project and refuse; who is faster is no test."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from privtrain.core.transcript import Entry

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def ops() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("mpc_ops")


@pytest.fixture
def stock(ops: ModuleType) -> ModuleType:
    return importlib.import_module("on_shares.stock")


def test_a_projection_is_rounds_times_latency_and_bytes_over_bandwidth(ops: ModuleType) -> None:
    # 22 rounds of 20 ms; 1.25 MB at 100 Mbit/s take 100 ms.
    assert ops.NETWORKS["wan"].milliseconds(22, 1_250_000) == pytest.approx(440 + 100)
    assert ops.NETWORKS["lan"].milliseconds(4, 125_000) == pytest.approx(1 + 1)


@pytest.mark.parametrize("parties", [2, 3])
def test_a_dealer_counts_what_it_dealt_for_one_run(ops: ModuleType, parties: int) -> None:
    names = (*(f"computing-{number}" for number in range(parties)), "dealer")

    def sent(sender: str, to: str, kind: str, size: int) -> Entry:
        return Entry(sender, to, kind, (size,), size, 0)

    def link(rank: int, entries: list[Entry]) -> SimpleNamespace:
        before = [sent(names[rank], names[1], "of another run", 100)]
        return SimpleNamespace(names=names, rank=rank, entries=before + entries)

    def cost(deals: bool, end: SimpleNamespace) -> Any:
        side = ops.Ring64Side(SimpleNamespace(deals=deals), end)
        side._sent = 1, len(end.entries)
        return side.cost()

    told = []
    dealer = link(parties, [sent("dealer", names[to], "material", 5 + to) for to in (0, 1, 1)])
    dealer.send = lambda to, kind, sizes: told.append((to, kind, sizes))
    cost(True, dealer)
    ((to, kind, sizes),) = told
    assert (to, kind, sizes.tolist()) == (names[0], "dealt", [12, 17])
    own = [sent(names[0], to, "masked share", 8) for to in (*names[1:-1], *names[1:])]
    party = link(0, own)
    party.receive = lambda *_: sizes
    assert cost(False, party) == ops.Cost(2, 16 * (parties - 1), 12, 17)


def test_rows_count_material_where_it_belongs(ops: ModuleType) -> None:
    sides = {
        "ring64": {"online": [1.0, 2.0], "total": [3.0, 4.0], "counts": [2, 1000, 20_000, 30_000]},
        "other": {"online": [4.0, 4.0], "total": [4.0, 4.0], "counts": [5, 0, 10_000, 10_000]},
    }
    online, total = ops.two_rows("work", sides, ("ring64", "other"))
    assert (online["ours"], total["ours"]) == ("ring64 online", "ring64 total")
    assert (online["ratio_min"], online["ratio_max"]) == (0.25, 0.5)
    assert (total["ratio_min"], total["ratio_max"]) == (0.75, 1.0)
    assert (total["ours_min_ms"], total["against_min_ms"]) == (3000.0, 4000.0)
    assert (total["rounds"], total["bytes_sent"], total["material_bytes"]) == (2, 1000, 20_000)
    assert total["all_material_bytes"] == 30_000
    lan = ops.NETWORKS["lan"]
    assert online["ours_lan_projected_ms"] == lan.milliseconds(2, 1000)
    assert total["ours_lan_projected_ms"] == lan.milliseconds(2, 21_000)
    # It deals while it computes.
    for row in (online, total):
        assert row["against_material_bytes"] == 10_000
        assert row["against_lan_projected_ms"] == lan.milliseconds(5, 10_000)


def test_messages_of_stock_crypten_are_counted(stock: ModuleType) -> None:
    def nothing(*_: Any, **__: Any) -> None: ...

    names = ("all_reduce", "send_obj", "recv_obj", "broadcast", "scatter")
    inner = SimpleNamespace(**dict.fromkeys(names, nothing), get_rank=lambda: 7)
    counting = stock.Counting(inner)
    words = torch.zeros(3, dtype=torch.int64)
    counting.all_reduce([words, words], batched=True)
    counting.all_reduce(words)
    counting.send_obj({}, 2, None)
    counting.recv_obj(2, None)
    counting.broadcast(words, 2, None)
    assert (counting.rounds, counting.sent, counting.material) == (2 + 2, 72, 24)
    assert counting.get_rank() == 7
    with pytest.raises(RuntimeError, match="scatter"):
        counting.scatter([words], 0)


def test_a_side_that_computes_something_else_is_not_timed(ops: ModuleType) -> None:
    for work in ops.works(True):
        exact = work.plain(work.operands())
        work.check(exact, 1e-3, "a side")
        with pytest.raises(RuntimeError, match=r"a side is 0\.01 away"):
            work.check([exact[0] + 0.01, *exact[1:]], 5e-3, "a side")


def test_steps_elsewhere_have_the_weights_and_the_results_of_the_step(ops: ModuleType) -> None:
    steps = [work for work in ops.works(True) if work.weights]
    assert [work.kind for work in steps] == ["logistic-step", "mlp-step"]
    for work in steps:
        results = work.plain(work.operands())
        assert [each.shape for each in work.weights] == [each.shape for each in results]
        largest = max(
            float((before - after).abs().max())
            for before, after in zip(work.weights, results, strict=True)
        )
        assert 1e-3 < largest < 0.1
