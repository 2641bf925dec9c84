"""No two fits share noise: what two results have in common never cancels it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import privtrain as pt
from privtrain.core.parameters import to_vector
from privtrain.core.seeding import SeededEntropy, Seeds
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.data.models import LogisticRegression
from privtrain.runs.roots import noise_root

DATA = FederatedData(
    train={"all": Rows(torch.linspace(-1, 1, 60).reshape(20, 3), torch.arange(20) % 2)},
    test=Rows(torch.zeros(2, 3), torch.tensor([0, 1])),
)
HERE = pt.Runtimes(star=pt.InProcess())
TASK = Task(model=LogisticRegression(3, 2))


def squared(logits: Tensor, targets: Tensor) -> Tensor:
    """Another loss of each row."""
    return (logits - nn.functional.one_hot(targets, 2)).square().sum(dim=1)


def trainer(clipping_norm: float = 1.0, **settings: Any) -> pt.DPSGD:
    """One step on all rows."""
    usual = {"epochs": 1, "sampling_rate": 1.0, "expected_batch": 1.0, "learning_rate": 1.0}
    release = pt.Release(pt.Gaussian(clipping_norm, 50.0))
    return pt.DPSGD(**(usual | {"release": release} | settings))


def weights_of(made: pt.DPSGD, task: Task = TASK, data: FederatedData = DATA) -> Tensor:
    """The published weights."""
    predictor: Any = pt.fit(made, task, data, delta=1e-3, seed=5).predictor
    return to_vector(predictor.module.parameters()).double()


def noise_of(made: pt.DPSGD, task: Task = TASK, data: FederatedData = DATA) -> Tensor:
    """The noise of the one step, in its deviations: the rows' part is two fifths at most."""
    start = weights_of(replace(made, release=pt.Release(pt.Gaussian(1e-9, 0.0))), task, data)
    assert isinstance(made.release.mechanism, pt.Gaussian)
    return (weights_of(made, task, data) - start) / made.release.mechanism.clipping_norm / 50.0


@pytest.mark.parametrize(
    "other",
    [
        lambda: noise_of(trainer(0.1)),
        lambda: noise_of(trainer(learning_rate=1.001)),
        lambda: noise_of(trainer(), replace(TASK, loss=squared)),
        lambda: noise_of(trainer(), data=replace(DATA, train={"a": DATA.pooled()})),
        lambda: noise_of(
            trainer(), data=replace(DATA, train={"all": DATA.pooled().take(torch.arange(1, 20))})
        ),
        lambda: noise_of(trainer(gradients=pt.Opacus())),
        lambda: noise_of(trainer(), data=replace(DATA, public_rows=20)),
        lambda: noise_of(trainer(), data=replace(DATA, public=Rows(torch.ones(2, 3)))),
    ],
    ids=[
        *("clipping norm", "learning rate", "loss", "party", "one row fewer", "engine"),
        *("stated number", "public part"),
    ],
)
def test_two_fits_of_one_seed_do_not_share_noise(other: Any) -> None:
    ours, theirs = noise_of(trainer()), other()
    # Standard normals of 8 parameters each: their distance is near 4 where they are independent.
    assert float((ours - theirs).norm()) > 1
    assert torch.equal(ours, noise_of(trainer()))


def test_the_statistic_of_two_models_keeps_its_noise() -> None:
    """At C = 20 and C = 0.1 the noise of the two models cancelled to five digits."""

    def step(clipping_norm: float, noise: float) -> Tensor:
        release = pt.Release(pt.Gaussian(clipping_norm, noise))
        return weights_of(trainer(clipping_norm, release=release))

    start = step(1e-12, 0.0)
    exact = (step(20.0, 0.0) - start) / 20 - (step(0.1, 0.0) - start) / 0.1
    noised = (step(20.0, 50.0) - start) / 20 - (step(0.1, 50.0) - start) / 0.1
    assert float((noised - exact).abs().max()) > 1


def test_a_root_follows_from_values_alone() -> None:
    model = nn.Linear(3, 2)
    root = noise_root(trainer(), TASK, DATA, model)
    assert root == noise_root(trainer(), replace(TASK, name="other", metrics={}), DATA, model)
    assert root != noise_root(pt.SGD(), TASK, DATA, model)
    unlike = nn.Linear(3, 2)
    assert root != noise_root(trainer(), TASK, DATA, unlike)
    assert len(root) == 32


def test_a_root_is_neither_printed_nor_the_seeds_own() -> None:
    entropy = SeededEntropy(3, root=b"secret root of 32 bytes and more")
    assert "secret" not in repr(entropy)
    name = ("noise", 0, "party")
    assert entropy[name].key != SeededEntropy(3)[name].key
    assert entropy[name].key != SeededEntropy(3, root=b"another")[name].key
    assert entropy[name].key != Seeds(3)[name].key


def test_runs_that_were_interrupted_at_other_steps_share_no_noise(tmp_path: Path) -> None:
    """Both resume behind the same block of paid releases."""

    def stop_at(step: int) -> Any:
        def progress(done: int, total: int) -> None:
            if done == step:
                raise KeyboardInterrupt

        return progress

    parts = {f"p{k}": DATA.pooled().take(torch.arange(5 * k, 5 * k + 5)) for k in range(4)}
    data, release = replace(DATA, train=parts), pt.Release(pt.Gaussian(1.0, 50.0))
    made = pt.FedAvg(rounds=100, release=release, local=pt.PlainSteps(learning_rate=0.01))
    found = []
    for step in (11, 13):
        folder, options = tmp_path / str(step), {"delta": 1e-3, "runtimes": HERE}
        with pytest.raises(KeyboardInterrupt):
            pt.fit(made, TASK, data, folder=folder, progress=stop_at(step), **options)
        result: Any = pt.fit(made, TASK, data, folder=folder, keep_payloads=True, **options)
        sent = [e.payload for e in result.transcript.entries if e.kind == "model" and e.round > 90]
        # What the server added between two late rounds: noise for the most part.
        assert sent[0] is not None and sent[-1] is not None
        found.append(sent[-1] - sent[0])
    assert float((found[0] - found[1]).norm()) > 0.1 * float(found[0].norm())


def test_a_journal_that_was_lost_beside_its_checkpoint_is_noticed(tmp_path: Path) -> None:
    def progress(done: int, total: int) -> None:
        if done == 30:
            raise KeyboardInterrupt

    made = trainer(epochs=40)
    with pytest.raises(KeyboardInterrupt):
        pt.fit(made, TASK, DATA, delta=1e-3, folder=tmp_path, progress=progress)
    (tmp_path / "journal.jsonl").unlink()
    with pytest.raises(pt.PrivacyError, match="entries were lost"):
        pt.fit(made, TASK, DATA, delta=1e-3, folder=tmp_path)


def test_two_choices_share_no_noise_on_their_scores() -> None:
    rows = DATA.pooled()
    scores = [
        pt.tune(
            {"one": trainer()},
            TASK,
            replace(DATA, test=rows.take(torch.arange(2))),
            score=pt.PrivateRows(Rows(rows.inputs[:count] + 1, rows.labels[:count]), noise),
            trials=pt.RandomTrials(mean=1.0),
            delta=1e-3,
        ).score
        for count, noise in ((10, pt.Gaussian(1.0, 50.0)), (9, pt.Gaussian(1.0, 50.0)))
    ]
    assert abs(scores[0] - scores[1]) > 1.5
