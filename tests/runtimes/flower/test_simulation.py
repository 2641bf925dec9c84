"""The parts of Flower that this package drives, and the names that flwr does not publish."""

import ast
import logging
from importlib import import_module
from pathlib import Path

import pytest
import torch

import privtrain
from privtrain.core.extras import is_missing

pytest.importorskip("flwr", reason='Flower is an extra: pip install "privtrain[flower]"')

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg

from privtrain.runtimes.flower.client import to_array
from privtrain.runtimes.flower.simulation import LocalGrid, coordinator
from tests.contracts.star_runtime import PARTIES

ROOT = Path(privtrain.__file__).parent
PUBLISHED = ("flwr.app", "flwr.clientapp", "flwr.serverapp")
PRIVATE = {
    "flwr.common.constant": {"SUPERLINK_NODE_ID"},
    "flwr.proto.task_pb2": {"Task"},
    "flwr.server.superlink.fleet.vce.backend.raybackend": {"RayBackend"},
    "flwr.server.superlink.fleet.vce.metrics": {"VceMetrics"},
    "flwr.server.superlink.fleet.vce.vce_api": {
        *("_register_node_info_stores", "_register_nodes", "run_api")
    },
    "flwr.server.superlink.linkstate": {"InMemoryLinkState", "LinkStateFactory"},
    "flwr.server.superlink.linkstate.in_memory_linkstate": {"RunRecord"},
    "flwr.supercore.constant": {"FLWR_IN_MEMORY_DB_NAME", "NOOP_FEDERATION_ID"},
    "flwr.supercore.object_store": {"ObjectStoreFactory"},
    "flwr.supercore.run": {"Run"},
    "flwr.supercore.task_identity": {"TaskIdentity"},
    "flwr.superlink.federation": {"NoOpFederationManager"},
    "flwr.superlink.grid": {"InMemoryGrid"},
}
"""Module to names that any version of flwr may rename; 1.41 and 1.42 have them all."""


def taken_from_flwr(path: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "flwr":
            found.setdefault(str(node.module), set()).update(alias.name for alias in node.names)
    return found


def test_what_flwr_does_not_publish_is_used_in_one_file_and_is_there() -> None:
    home = ROOT / "runtimes" / "flower" / "simulation.py"
    for path in ROOT.rglob("*.py"):
        private = {m: n for m, n in taken_from_flwr(path).items() if m not in PUBLISHED}
        assert private == (PRIVATE if path == home else {}), path
    for module, names in PRIVATE.items():
        if module.endswith("raybackend") and is_missing("ray"):
            continue
        assert names <= set(dir(import_module(module))), module
    # And those that are reached through a value, not by an import.
    identity = import_module("flwr.supercore.task_identity").TaskIdentity
    assert {"_task_id", "_run_id", "_node_id"} <= set(dir(identity))
    with coordinator():
        message = Message(RecordDict({}), 2, "train", ttl=None, group_id="0")
    assert "_message_id" in message.metadata.__dict__


def a_flower_client(rows: dict[int, float]) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        target = rows[int(context.node_id)]
        weight = message.content["arrays"]["w"].numpy()
        moved = ArrayRecord({"w": Array(weight + 0.5 * (target - weight))})
        metrics = {"num-examples": 1.0}
        content = RecordDict({"arrays": moved, "metrics": MetricRecord(metrics)})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(
            RecordDict({"metrics": MetricRecord({"num-examples": 1.0, "loss": 0.0})}),
            reply_to=message,
        )

    return app


def test_flowers_own_strategy_runs_on_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = {2: 1.0, 3: 3.0, 4: 5.0}
    grid = LocalGrid(a_flower_client(targets), dict.fromkeys(PARTIES))
    assert isinstance(grid, Grid)
    assert list(grid.get_node_ids()) == list(targets)
    strategy = FlowerFedAvg(
        fraction_evaluate=0.0, min_train_nodes=3, min_evaluate_nodes=3, min_available_nodes=3
    )
    monkeypatch.setattr(logging.getLogger("flwr"), "level", logging.CRITICAL)
    start = ArrayRecord({"w": Array(torch.zeros(1, dtype=torch.float64).numpy())})
    with coordinator():
        result = strategy.start(grid=grid, initial_arrays=start, num_rounds=4)
    # Each round goes half the way to the mean of the targets, 3.
    assert float(result.arrays["w"].numpy()[0]) == pytest.approx(3.0 * (1 - 0.5**4), abs=1e-12)


def test_the_grid_makes_messages_and_hands_each_reply_out_once() -> None:
    grid = LocalGrid(a_flower_client({2: 1.0}), {"client-0": None})
    (node,) = grid.get_node_ids()
    content = RecordDict({"arrays": ArrayRecord({"w": to_array(torch.zeros(1))})})
    message = grid.create_message(content, "train", node, "0")
    (number,) = grid.push_messages([message])
    (reply,) = grid.pull_messages([number])
    assert reply.metadata.reply_to_message_id == number
    assert reply.metadata.src_node_id == node
    assert list(grid.pull_messages([number])) == []
    run = grid.run
    grid.set_run(run)
    assert grid.run is run
