"""What messages say is the same however clients answer: by models, by changes, with weights."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from privtrain.attacks.attack import target_for
from privtrain.attacks.messages import models_sent, own_module, updates_of, with_values
from privtrain.core.errors import NotApplicableError, Reason
from privtrain.core.observers import AGGREGATOR, PUBLIC, Observer, coalition
from privtrain.core.parameters import ModelPredictor, float_buffers, to_vector, trainable
from privtrain.core.parties import AGGREGATOR_NAME
from privtrain.core.result import Predictor, Target
from privtrain.core.task import Rows, Task
from privtrain.core.transcript import Entry, Transcript
from privtrain.steps.weights import UNBOUNDED_SCALE

SIZE = 8 * 3 + 3
TASK = Task(model=lambda: nn.Linear(8, 3))
GENERATOR = torch.Generator().manual_seed(0)
START = 0.3 * torch.randn(SIZE, generator=GENERATOR)
# Larger than the models: only what the aggregator made of them tells them apart.
CHANGES = torch.randn(2, 3, SIZE, generator=GENERATOR)
Answer = Callable[[Tensor, Tensor, int], Tensor]


def _without_tensor(entry: Entry) -> Entry:
    return replace(entry, kept=None)


def transcript_of(
    answer: Answer, start: Tensor = START, changes: Tensor = CHANGES, step: float = 1.0
) -> Transcript:
    """Two rounds of three clients, each of which answers a model and a change of it."""
    transcript, sent = Transcript(keep_payloads=True), start
    for round in range(2):
        for client in range(3):
            name = f"client-{client}"
            transcript.send(AGGREGATOR_NAME, name, "model", sent, round=round)
            # No model: its length is another one.
            transcript.send(AGGREGATOR_NAME, name, "model", torch.ones(4), round=round)
            message = answer(sent, changes[round, client], client)
            transcript.send(name, AGGREGATOR_NAME, "update", message, round=round)
        sent = sent + step * changes[round].nan_to_num().mean(dim=0)
    transcript.publish("model", sent, sender=AGGREGATOR_NAME, round=2)
    return transcript


def target(
    transcript: Transcript,
    observer: Observer = AGGREGATOR,
    predictor: Predictor | None = None,
    own: tuple[str, ...] = (),
) -> Target:
    rows = {name: Rows(torch.ones(1, 8), torch.zeros(1, dtype=torch.long)) for name in own}
    model = ModelPredictor(nn.Linear(8, 3)) if predictor is None else predictor
    return target_for(observer, transcript=transcript, predictor=model, task=TASK, own=rows)


def models(start: Tensor, change: Tensor, client: int) -> Tensor:
    return start + change


def changes(start: Tensor, change: Tensor, client: int) -> Tensor:
    return change


def with_weights(answer: Answer, unit: float) -> Answer:
    """Answers of 5, 6 and 7 rows, whose weights are sent times a number."""

    def weighted(start: Tensor, change: Tensor, client: int) -> Tensor:
        weight = 5.0 + client
        return torch.cat([answer(start, change, client) * weight, torch.tensor([weight * unit])])

    return weighted


ANSWERS = {
    "models": (models, 1.0),
    "changes": (changes, 1.0),
    "changes that the server scales": (changes, 0.3),
    "weighted models": (with_weights(models, UNBOUNDED_SCALE), 1.0),
    "models with bounded weights": (with_weights(models, 1.0), 1.0),
    "weighted changes": (with_weights(changes, UNBOUNDED_SCALE), 0.3),
}


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("scale", [1.0, 0.0, 10.0], ids=["", "from zero", "from large weights"])
def test_changes_are_the_same_however_clients_answer(kind: str, scale: float) -> None:
    answer, step = ANSWERS[kind]
    transcript = transcript_of(answer, scale * START, step=step)
    seen = target(transcript)
    updates = list(updates_of(seen, own_module(seen)))
    assert [(one.party, one.round) for one in updates] == [
        (f"client-{client}", round) for round in range(2) for client in range(3)
    ]
    for one in updates:
        expected = CHANGES[one.round, int(one.party[-1])]
        torch.testing.assert_close(one.change.float(), expected, atol=1e-4, rtol=1e-3)
    assert torch.equal(updates[0].sent.float(), scale * START)


@pytest.mark.parametrize("answer", [models, changes])
def test_noise_and_an_answer_that_is_not_finite_change_nothing(answer: Answer) -> None:
    noised = CHANGES + 5 * torch.randn(CHANGES.shape, generator=torch.Generator().manual_seed(1))
    noised[0, 1] = torch.nan
    seen = target(transcript_of(answer, changes=noised))
    found = torch.stack([one.change for one in updates_of(seen, own_module(seen))]).float()
    torch.testing.assert_close(found.view(noised.shape), noised, equal_nan=True)


def test_own_updates_are_left_out() -> None:
    members = coalition({AGGREGATOR_NAME, "client-1"})
    seen = target(transcript_of(models), members, own=("client-1",))
    parties = {one.party for one in updates_of(seen, own_module(seen))}
    assert parties == {"client-0", "client-2"}


def test_every_model_is_read_once_and_in_order() -> None:
    seen = target(transcript_of(models))
    read = torch.stack(models_sent(seen, own_module(seen)))
    steps = torch.cat([START[None], CHANGES.mean(dim=1)]).cumsum(dim=0)
    torch.testing.assert_close(read, steps)


def test_buffers_that_were_sent_are_loaded() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    tensors: list[Tensor] = [*trainable(module), *float_buffers(module)]
    vector = torch.arange(1.0, 1.0 + sum(tensor.numel() for tensor in tensors))
    with_values(module, vector)
    assert torch.equal(to_vector([*trainable(module), *float_buffers(module)]), vector)
    with_values(module, 2 * vector[:-4])
    assert torch.equal(to_vector(trainable(module)), 2 * vector[:-4])
    assert torch.equal(to_vector(float_buffers(module)), vector[-4:])


def test_the_attacked_model_stays_what_it_is() -> None:
    predictor = ModelPredictor(nn.Linear(8, 3))
    before = to_vector(predictor.module.parameters())
    with_values(own_module(target(Transcript(), predictor=predictor)), START)
    assert torch.equal(to_vector(predictor.module.parameters()), before)


def test_what_cannot_be_read_is_refused_by_its_reason() -> None:
    shares = Transcript(keep_payloads=True)
    shares.send(AGGREGATOR_NAME, "client-0", "model", START, round=0)
    shares.send("client-0", AGGREGATOR_NAME, "update share", START.long(), round=0)
    headers = transcript_of(models)
    headers = Transcript(entries=[*map(_without_tensor, headers.entries)])
    whole = target(transcript_of(models), PUBLIC)
    module = own_module(whole)
    for reason, ask in (
        (Reason.NO_MESSAGES, lambda: updates_of(target(shares), module)),
        (Reason.NO_MESSAGES, lambda: updates_of(whole, module)),
        (Reason.NO_MESSAGES, lambda: models_sent(whole, module)),
        (Reason.NO_TENSORS, lambda: updates_of(target(headers), module)),
        (Reason.NO_WEIGHTS, lambda: own_module(target(shares, predictor=lambda rows: rows))),
    ):
        with pytest.raises(NotApplicableError) as caught:
            ask()  # type: ignore[no-untyped-call]
        assert caught.value.reason is reason
