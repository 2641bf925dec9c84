"""A client's round of federated averaging (McMahan et al. 2017, Algorithm 1, `ClientUpdate`)."""

from dataclasses import dataclass, replace

from torch import Tensor, nn

from privtrain.core.parameters import (
    float_buffers,
    initial_model,
    load_vector,
    to_vector,
    trainable,
)
from privtrain.core.runtime import Party, Payload, Reply
from privtrain.core.task import Task
from privtrain.core.validate import all_finite
from privtrain.release.door import Release
from privtrain.steps.local import LocalSteps
from privtrain.steps.optimizers import check_not_diverged
from privtrain.steps.weights import Weights, scale_of


def values(model: nn.Module, *, buffers: bool) -> list[Tensor]:
    """The tensors that clients and server exchange: parameters, then float buffers where asked."""
    return [*trainable(model), *(float_buffers(model) if buffers else [])]


def training_mode(model: nn.Module, *, statistics: bool) -> nn.Module:
    """Puts a model into training mode.

    Args:
        model: The model.
        statistics: Whether layers with running statistics, such as batch normalisation, follow
            the batches. Under a bound they must not: their statistics would leave the client
            without noise, or be spoiled by it. They then normalise with their public initial
            statistics, in training as in prediction.

    Returns:
        The model.
    """
    model.train()
    if not statistics:
        for layer in model.modules():
            if getattr(layer, "track_running_stats", False):
                layer.eval()
    return model


@dataclass(frozen=True)
class ClientStep:
    """A client's round: it improves the model it is sent, and releases the result.

    `ClientUpdate` in Algorithm 1 of McMahan et al. 2017, `UserUpdate` in that of 2018.

    Args:
        task: What is learned.
        local: How the model is improved.
        release: How the contribution leaves.
        weights: The client's weight in the average.
        sends_change: Whether the contribution is the change of the model, or the model itself.
    """

    task: Task
    local: LocalSteps
    release: Release
    weights: Weights
    sends_change: bool

    def __call__(self, payload: Payload, party: Party) -> Reply:
        exact = not self.release.bounding
        model, tensors = self._model(party, statistics=exact)
        load_vector(tensors, payload["model"])
        # ClientUpdate, "for each local epoch ... for batch b": w <- w - eta * gradient.
        seen = self.local(model, self.task, party.rows, party.draws)
        trained = to_vector(tensors).cpu()
        if exact and not all_finite(trained):
            # Behind a bound what is not finite counts as zero, and nobody is told.
            check_not_diverged(trainable(model), party.rows.inputs)
        # UserUpdate returns theta - theta_0, which can be clipped; ClientUpdate returns w itself.
        contribution = trained - payload["model"] if self.sends_change else trained
        weight = 1.0 if self.weights.uniform else self.weights.weight(len(party.rows))
        sealed = None
        if not (self.weights.uniform or divides_by_public(self.weights, self.release)):
            sealed = weight * scale_of(self.weights)
        # "ClipFn" of McMahan et al. 2018 is the mechanism's bound, taken behind this call, and
        # then w_k: a bounded update times a weight of at most 1 stays within the bound.
        reply = self.release.leave([contribution], party, factor=weight, weight=sealed)
        numbers = {**reply.seen.numbers, **seen.numbers}
        return replace(reply, seen=replace(seen, numbers=numbers))

    def _model(self, party: Party, *, statistics: bool) -> tuple[nn.Module, list[Tensor]]:
        """The worker's model, to be overwritten, and its exchanged tensors.

        One worker runs many clients: making a model for each is slower than overwriting one. What
        is not exchanged, such as frozen layers, starts as it does at the server.
        """
        key = ("fedavg", self.task.model, statistics)
        if party.cache.get("key") != key:
            start = party.seeds["initialisation", 0, ""]
            model = initial_model(self.task, start).to(party.device)
            buffers = [buffer.clone() for buffer in model.buffers()]
            exchanged = values(model, buffers=statistics)
            party.cache.update(key=key, model=model, buffers=buffers, exchanged=exchanged)
        worker_model: nn.Module = party.cache["model"]
        # No buffer, such as running statistics, may carry one client's rows to the next client.
        # A model without buffers may register its first one while it runs.
        if party.cache["buffers"]:
            for buffer, initial in zip(worker_model.buffers(), party.cache["buffers"], strict=True):
                buffer.copy_(initial)
        return training_mode(worker_model, statistics=statistics), party.cache["exchanged"]


def divides_by_public(weights: Weights, release: Release) -> bool:
    """Whether the server divides by a public number rather than by the weights that came.

    It does where each client's part of the sum is bounded, with noise or without: no noise is then
    the limit of little noise.
    """
    return release.bounding and weights.bounded
