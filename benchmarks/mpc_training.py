"""Whole trainings on secret shares, from start to row: engines with a dealer against CrypTen.

    python benchmarks/mpc_training.py [--quick] [--json]

`MPCSGD` on digits (MLP 64-64-10), two computing parties on loopback; each engine's processes start
and end within its seconds, in turn. Beside the seconds: how many test rows are predicted otherwise
than by the same steps in plaintext, bytes and rounds by the transcript, and what these would take
over other networks (`on_shares/network.py`: projected, without computing). Where `PRIVTRAIN_DATA`
names a folder with MNIST, a small CNN is trained for one epoch on 10,000 of its images, once,
against its plaintext twin: CrypTen's engine has no convolutions.
"""

import os
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from harness import SEED, Row, from_seconds, in_turn, main
from on_shares.network import NETWORKS
from torch import nn

# The files of this folder run as scripts from a checkout that need not be installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import privtrain as pt
from privtrain.core.task import FederatedData, Task
from privtrain.core.trainer import Trainer
from privtrain.mpc.engine import Engine

ENGINES: dict[str, Engine] = {
    "ring64": pt.Ring64(),
    "spdz2k": pt.SPDZ2k(),
    "crypten": pt.CrypTen(),
}
IMAGES = 10_000


def trained(trainer: Trainer, task: Task, data: FederatedData) -> pt.TrainResult:
    """A fit with real processes."""
    runtimes = pt.Runtimes(star=pt.InProcess(), mesh=pt.Processes(timeout=300))
    return pt.fit(trainer, task, data, seed=SEED, runtimes=runtimes)


def predictions(result: pt.TrainResult, data: FederatedData) -> torch.Tensor:
    """The class of each test row."""
    return result.predictor(data.test.inputs).argmax(dim=1)


def figures(result: pt.TrainResult, twin: pt.TrainResult, data: FederatedData) -> Row:
    """What a training gave and cost, beside the same steps in plaintext."""
    labels, ours, plain = data.test.labels, predictions(result, data), predictions(twin, data)
    sent, dealt = 0, Counter[str]()
    for entry in result.transcript.entries:
        if entry.kind == "material":
            dealt[entry.receiver] += entry.bytes
        else:
            sent += entry.bytes
    most = max(dealt.values(), default=0)
    # Half of what is sent: two parties do so at the same time.
    moved = sent // 2 + most
    projected = {
        f"{name}_projected_s": network.milliseconds(result.cost.rounds or 0, moved) / 1e3
        for name, network in NETWORKS.items()
    }
    return {
        "accuracy": float((ours == labels).double().mean()),
        "twin_accuracy": float((plain == labels).double().mean()),
        "other_predictions": int((ours != plain).sum()),
        "test_rows": len(labels),
        "rounds": result.cost.rounds,
        "bytes": sent,
        "material_bytes": most,
        "all_material_bytes": dealt.total(),
        "peak_memory_bytes": result.cost.peak_memory_bytes,
        "twin_peak_memory_bytes": twin.cost.peak_memory_bytes,
        **projected,
    }


def digits(engine: str, quick: bool) -> Row:
    """The same epochs on an engine and on CrypTen."""
    task, data = pt.data.digits(parties=2)
    epochs = 1 if quick else 20
    results: dict[str, pt.TrainResult] = {}

    def seconds(name: str) -> float:
        started = time.perf_counter()
        results[name] = trained(pt.MPCSGD(epochs=epochs, engine=ENGINES[name]), task, data)
        return time.perf_counter() - started

    row = in_turn(
        f"digits MLP 64-64-10, {epochs} epochs",
        lambda: seconds(engine),
        lambda: seconds("crypten"),
        ours_name=f"{engine}, start to row",
        against_name="crypten",
        repeats=1 if quick else 5,
    )
    twin = trained(pt.MPCSGD(epochs=epochs).plaintext_twin(), task, data)
    theirs = figures(results["crypten"], twin, data)
    projected = tuple(f"{name}_projected_s" for name in NETWORKS)
    kept = ("accuracy", "other_predictions", "rounds", "bytes", *projected)
    against = {f"crypten_{key}": theirs[key] for key in kept}
    return row | figures(results[engine], twin, data) | against


def cnn() -> nn.Module:
    """Two strided convolutions and two dense layers."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def mnist() -> Row:
    """One epoch of the CNN on shares, once, against the same steps in plaintext."""
    task, data = pt.data.mnist(parties=2, model=cnn)
    data = FederatedData(
        train={name: rows.take(torch.arange(IMAGES // 2)) for name, rows in data.train.items()},
        test=data.test,
    )
    trainer = pt.MPCSGD(epochs=1, batch_size=128, learning_rate=0.5, engine=pt.Ring64())
    started = time.perf_counter()
    ours = trained(trainer, task, data)
    between = time.perf_counter()
    twin = trained(trainer.plaintext_twin(), task, data)
    ended = time.perf_counter()
    row = from_seconds(
        f"MNIST CNN, {IMAGES} images, 1 epoch",
        [between - started],
        [ended - between],
        ours_name="ring64, start to row",
        against_name="plaintext twin",
    )
    return row | figures(ours, twin, data)


def rows(quick: bool) -> list[Row]:
    """Both trainings; quickly one epoch of the first on one engine."""
    table = [digits(engine, quick) for engine in ("ring64", "spdz2k")[quick:]]
    if not quick and os.environ.get("PRIVTRAIN_DATA"):
        table.append(mnist())
    return table


if __name__ == "__main__":
    main(rows)
