"""Shadow models: trained together against a loop of `fit`, in CPU seconds.

    python benchmarks/shadows.py [--quick] [--json]

Both sides train the same models on the same complementary halves and ask each about all candidates:
"digits-mlp" 32 models of digits, "digits-fedavg" 32 federations of ten clients, "mnist-mlp" 18
perceptrons 784-64-10 on 10,000 rows of MNIST each (with `--quick` a few models, on made-up images).
That losses are the same, to the bit without noise, is checked on two of the models before anything
is timed. Beside the times: by how many MiB the process grew at most while models were trained
together.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import SEED, Row, in_turn, main

# The files of this folder run as scripts from a checkout that need not be installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import privtrain as pt
from privtrain.core.cost import peak_memory, reset_peak_memory
from privtrain.core.seeding import Seeds
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.core.trainer import Trainer
from privtrain.data.models import MLP
from privtrain.report.progress import silent
from privtrain.runs.shadows import Shadows, shadows, values_of


def together(trainer: Trainer, task: Task, data: FederatedData, count: int) -> Shadows:
    """All models by `shadows`."""
    made = shadows(trainer, task, data, count=count, seed=SEED, progress=silent)
    if any("one by one" in note for note in made.notes):
        raise RuntimeError(f"These models are not trained together: {made.notes}")
    return made


def one_by_one(
    trainer: Trainer, task: Task, data: FederatedData, included: torch.Tensor
) -> np.ndarray[Any, Any]:
    """Losses of models by a loop of `fit`, as somebody would write it."""
    rows, losses = data.pooled(), []
    counts = [len(data.train[name]) for name in data.parties]
    for number, marks in enumerate(included):
        parts = zip(data.train.items(), marks.split(counts), strict=True)
        train = {name: held.take(own.nonzero().flatten()) for (name, held), own in parts}
        half = replace(data, train=train)
        seed = int.from_bytes(Seeds(SEED)["shadow model", number, ""].key[:8], "little")
        result = pt.fit(trainer, task, half, seed=seed, progress=silent)
        losses.append(values_of(result.predictor, task, rows)[0])
    return torch.stack(losses).numpy()


def measured(
    name: str, trainer: Trainer, task: Task, data: FederatedData, count: int, repeats: int
) -> Row:
    """One row of the table."""
    reset_peak_memory()
    before = peak_memory()
    made = together(trainer, task, data, count)
    grown = (peak_memory() - before) / 2**20
    included = torch.from_numpy(made.included)
    far = np.abs(one_by_one(trainer, task, data, included[:2]) - made.losses[:2]).max()
    allowed = 1e-3 if isinstance(trainer, pt.DPSGD) else 0.0
    if not far <= allowed:
        raise RuntimeError(f"{name}: losses differ by {far:.2g}.")
    row = in_turn(
        name,
        lambda: cpu_seconds(lambda: together(trainer, task, data, count)),
        lambda: cpu_seconds(lambda: one_by_one(trainer, task, data, included)),
        ours_name="together",
        against_name="loop of fit",
        repeats=repeats,
    )
    return {**row, "models": count, "grown_mib": round(grown, 1), "largest_difference": float(far)}


def cpu_seconds(work: Callable[[], object]) -> float:
    """Seconds of the processor, of one thread."""
    start = time.process_time()
    work()
    return time.process_time() - start


def images(quick: bool) -> tuple[Task, FederatedData]:
    """A perceptron, and candidates of which each half has 10,000 rows."""
    task = Task(model=MLP((784, 64, 10)), name="images")
    if quick:
        generator = torch.Generator().manual_seed(SEED)
        inputs = torch.rand(2_000, 784, generator=generator)
        made = Rows(inputs, torch.randint(10, (2_000,), generator=generator))
        return task, FederatedData(train={"party-0": made}, test=made, public_rows=1_000)
    _, data = pt.data.mnist(parties=1, seed=SEED)
    (name,) = data.parties
    whole, test = data.train[name], data.test
    few = Rows(whole.inputs[:20_000].flatten(1), whole.labels[:20_000])
    held = Rows(test.inputs.flatten(1), test.labels)
    kept = replace(data, train={name: few}, test=held, validation=None, public_rows=10_000)
    return task, kept


def rows(quick: bool) -> list[Row]:
    """Measures everything."""
    digits, data = pt.data.digits(parties=1, seed=SEED)
    _, ten = pt.data.digits(parties=10, seed=SEED)
    perceptron, pictures = images(quick)
    few, many, repeats = (4, 4, 5) if quick else (32, 18, 5)
    noised = pt.DPSGD(
        epochs=1 if quick else 4,
        expected_batch=64.0,
        release=pt.Release(pt.Gaussian(1.0, 1.0)),
    )
    plain = pt.SGD(epochs=1 if quick else 4, batch_size=64)
    return [
        measured("digits-mlp SGD", pt.SGD(epochs=3 if quick else 20), digits, data, few, repeats),
        measured("digits-fedavg", pt.FedAvg(rounds=3 if quick else 30), digits, ten, few, repeats),
        measured("mnist-mlp SGD", plain, perceptron, pictures, many, repeats),
        measured("mnist-mlp DPSGD", noised, perceptron, pictures, many, repeats),
    ]


if __name__ == "__main__":
    main(rows)
