"""Teachers of PATE: trained together against one by one, and in closed form.

    python benchmarks/teachers.py [--quick] [--json]

Perceptrons 784-64-10 and the convolutional network of `pt.data`, on 240 rows a teacher give or
take some, three epochs of batches of 32; initial models and votes on 500 queries are in both
sides. The same votes in float64 are checked before anything is timed. Beside them: ridge teachers
on scattering features of MNIST, whose features are made once.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import SEED, Row, compare, main

# The files of this folder run as scripts from a checkout that need not be installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import privtrain as pt
from privtrain.core.runtime import Draws
from privtrain.core.seeding import SeededEntropy, Seeds
from privtrain.core.task import Rows, Task
from privtrain.data.models import CNN, MLP
from privtrain.steps.features import features_of, mapped
from privtrain.steps.teaching import Teacher, TeacherSteps

STEPS = pt.PlainSteps(epochs=3, batch_size=32, learning_rate=0.01, optimizer="Adam")
EXTRAS: dict[str, Any] = {}


def teachers(count: int, shape: tuple[int, ...], dtype: torch.dtype) -> list[Teacher]:
    """Teachers on made-up rows, not equally large."""
    generator = torch.Generator().manual_seed(SEED)
    made = []
    for number in range(count):
        rows = 240 + int(torch.randint(-30, 31, (), generator=generator))
        inputs = torch.rand(rows, *shape, generator=generator, dtype=dtype)
        labels = torch.randint(10, (rows,), generator=generator)
        draws = Draws(Seeds(SEED), SeededEntropy(SEED), 0, f"p/teacher-{number}")
        made.append(Teacher(Rows(inputs, labels), draws))
    return made


def taught(
    steps: TeacherSteps, task: Task, group: list[Teacher], queries: torch.Tensor
) -> list[torch.Tensor]:
    """Scores of all teachers, in the groups that the steps want."""
    size = steps.at_once
    return [
        scores
        for start in range(0, len(group), size)
        for scores in steps.teach(task, group[start : start + size], queries, 10)
    ]


def same_scores(model: Callable[[torch.dtype], Any], shape: tuple[int, ...]) -> None:
    """Stops the benchmark where both sides do not compute the same, in float64."""
    task, group = Task(model=model(torch.float64)), teachers(3, shape, torch.float64)
    queries = torch.rand(20, *shape, dtype=torch.float64)
    together = pt.Together(steps=STEPS).prepared(task, queries, 10)
    if together.at_once < 2:
        raise RuntimeError("These teachers are not trained together.")
    pairs = zip(
        taught(STEPS, task, group, queries), taught(together, task, group, queries), strict=True
    )
    far = max(float((one - other).abs().max()) for one, other in pairs)
    if far > 1e-9:
        raise RuntimeError(f"Scores differ by {far:.2g}.")


def together_against_loop(
    name: str, model: Callable[[torch.dtype], Any], shape: tuple[int, ...], count: int, repeats: int
) -> Row:
    """One row of the table."""
    same_scores(model, shape)
    task, group = Task(model=model(torch.float32)), teachers(count, shape, torch.float32)
    queries = torch.rand(500, *shape)
    together = pt.Together(steps=STEPS).prepared(task, queries, 10)
    row = compare(
        name,
        lambda: taught(together, task, group, queries),
        lambda: taught(STEPS, task, group, queries),
        ours_name=f"together, {together.at_once} at once",
        against_name="one by one",
        repeats=repeats,
    )
    return {**row, "teachers": count}


def ridge_on_mnist() -> dict[str, Any]:
    """250 ridge teachers on scattering features of MNIST, in CPU seconds; 10,000 queries."""
    task, data = pt.data.mnist(parties=1, seed=SEED)
    (party,) = data.parties
    rows, asked = data.train[party], data.test.inputs
    features, count = pt.Scattering(), 250
    start = time.process_time()
    queries, read = mapped(features, asked), features_of(features, rows)
    made = time.process_time()
    order = torch.randperm(len(read), generator=torch.Generator().manual_seed(SEED))
    parts = order.tensor_split(count)
    draws = [Draws(Seeds(SEED), SeededEntropy(SEED), 0, f"p/teacher-{n}") for n in range(count)]
    group = [Teacher(read.take(part), own) for part, own in zip(parts, draws, strict=True)]
    begun = time.process_time()
    # Of 1 to 30,000 the best on validation rows; see docs/trainers/pate.md.
    scores = taught(pt.Ridge(strength=100.0), task, group, queries)
    ended = time.process_time()
    votes = torch.stack([each.argmax(dim=1) for each in scores])
    counts = torch.nn.functional.one_hot(votes, 10).sum(dim=0)
    truth, top = data.test.labels, counts.max(dim=1).values
    return {
        "teachers": count,
        "rows_a_teacher": len(parts[0]),
        "queries": len(asked),
        "features_cpu_seconds": round(made - start, 1),
        "ridge_cpu_seconds": round(ended - begun, 1),
        "mean_teacher": round(float((votes == truth).double().mean()), 4),
        "plurality": round(float((counts.argmax(dim=1) == truth).double().mean()), 4),
        "mean_top_share": round(float((top / count).double().mean()), 4),
        "share_of_queries_with_four_fifths": round(float((top >= 0.8 * count).double().mean()), 4),
    }


def rows(quick: bool) -> list[Row]:
    """Measures everything."""
    count, repeats = (4, 5) if quick else (50, 7)
    made = [
        together_against_loop(
            "perceptron 784-64-10",
            lambda dtype: MLP((784, 64, 10), dtype),
            (784,),
            count,
            repeats,
        ),
        together_against_loop(
            "convolutional", lambda dtype: CNN(dtype=dtype), (1, 28, 28), count // 2, repeats
        ),
    ]
    if not quick:
        EXTRAS["ridge_on_scattering"] = ridge_on_mnist()
        print(EXTRAS["ridge_on_scattering"], file=sys.stderr)
    return made


if __name__ == "__main__":
    main(rows, extras=EXTRAS)
