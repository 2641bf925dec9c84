"""Labels on a graph against loops, closed forms and sums by hand, in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor

from privtrain.steps import spreading
from privtrain.steps.spreading import (
    compressed,
    neighbour_graph,
    regressed,
    shrunk_shares,
    spread,
    with_masses,
)


def some_features(rows: int = 40, width: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)).double()


def by_hand(features: Tensor, neighbours: int) -> Tensor:
    """The graph by loops over pairs of rows, dense."""
    rows = features / features.norm(dim=1, keepdim=True)
    made = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for i in range(len(rows)):
        others = sorted((j for j in range(len(rows)) if j != i), key=lambda j: -rows[i] @ rows[j])
        for j in others[:neighbours]:
            made[i, j] = max(0.0, float(rows[i] @ rows[j]))
    return torch.maximum(made, made.T)


@pytest.mark.parametrize("at_a_time", [2**24, 90])
def test_the_graph_is_that_of_a_loop_over_pairs(
    at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one go, and in parts of two rows."""
    monkeypatch.setattr(spreading, "_AT_A_TIME", at_a_time)
    graph = neighbour_graph(some_features(), 4)
    assert np.allclose(graph.toarray(), by_hand(some_features(), 4).numpy(), atol=1e-6)
    assert (graph.diagonal() == 0).all()


def test_fewer_rows_than_neighbours_are_all_joined() -> None:
    positive = some_features(5).abs()
    assert (neighbour_graph(positive, 10) > 0).sum() == 5 * 4
    assert neighbour_graph(positive[:1], 10).shape == (1, 1)
    assert neighbour_graph(positive[:1], 10).nnz == 0


def test_equal_rows_are_joined_with_weight_one_and_zeros_with_none() -> None:
    features = torch.cat([some_features(1), some_features(1), torch.zeros(1, 6)])
    graph = neighbour_graph(features, 1).toarray()
    assert graph[0, 1] == pytest.approx(1.0)
    assert graph[2].sum() == 0


@pytest.mark.parametrize("alpha", [0.5, 0.95, 0.99])
def test_spreading_ends_at_the_closed_form(alpha: float) -> None:
    """Zhou et al. 2003, equation 3: F* = (1 - alpha) (I - alpha S)^-1 Y."""
    graph = neighbour_graph(some_features(), 4)
    labels = torch.zeros(40, 3)
    labels[torch.arange(6), torch.arange(6) % 3] = 1.0
    dense = graph.toarray()
    root = 1 / np.sqrt(dense.sum(axis=1))
    normal = dense * root[:, None] * root[None, :]
    exact = (1 - alpha) * np.linalg.solve(np.eye(40) - alpha * normal, labels.double().numpy())
    assert np.allclose(spread(graph, labels, alpha).numpy(), exact, atol=1e-6)


def test_rows_that_nothing_reaches_get_the_shares_of_all() -> None:
    features = torch.zeros(6, 2)
    features[:3, 0], features[3:, 1] = 1.0, 1.0
    labels = torch.zeros(6, 2)
    labels[0, 1] = 1.0
    scores = spread(neighbour_graph(features, 2), labels, 0.9)
    assert (scores[:3, 1] > 0).all() and (scores[3:] == 0).all()
    shares = torch.tensor([0.25, 0.75], dtype=torch.float64)
    likely = with_masses(scores, shares)
    assert torch.allclose(likely[3:], shares.expand(3, 2))
    assert likely[:3].argmax(dim=1).tolist() == [1, 1, 1]


def test_masses_of_classes_are_as_asked_and_rows_are_probabilities() -> None:
    scores = some_features(300, 3).abs() * torch.tensor([5.0, 1.0, 0.2])
    for shares in ([1 / 3, 1 / 3, 1 / 3], [0.2, 0.3, 0.5]):
        wanted = torch.tensor(shares, dtype=torch.float64)
        likely = with_masses(scores, wanted)
        assert torch.allclose(likely.sum(dim=1), torch.ones(300, dtype=torch.float64))
        assert torch.allclose(likely.mean(dim=0), wanted, atol=0.01)
    # Without it the first class takes nearly all.
    assert float((scores.argmax(dim=1) == 0).double().mean()) > 0.8


def test_a_class_without_a_label_has_no_row() -> None:
    shares = torch.tensor([1.0, 0.0], dtype=torch.float64)
    likely = with_masses(torch.tensor([[0.2, 0.0], [0.0, 0.0]], dtype=torch.float64), shares)
    assert likely.argmax(dim=1).tolist() == [0, 0]
    assert bool(torch.isfinite(likely).all())


def drawn(shares: list[float], count: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    labels = torch.multinomial(torch.tensor(shares), count, replacement=True, generator=generator)
    return torch.nn.functional.one_hot(labels, len(shares))


def test_shares_of_few_labels_are_drawn_towards_equal_ones_as_far_as_chance_goes() -> None:
    equal = drawn([0.1] * 10, 286)
    by_count = equal.double().mean(dim=0)
    assert float((shrunk_shares(equal) - 0.1).abs().max()) < 0.4 * float(
        (by_count - 0.1).abs().max()
    )
    skewed = drawn([0.76, 0.24], 286)
    assert torch.allclose(shrunk_shares(skewed), skewed.double().mean(dim=0), atol=0.005)
    for labels in (equal, skewed, drawn([0.5, 0.3, 0.2], 12)):
        assert float(shrunk_shares(labels).sum()) == pytest.approx(1.0)


def test_shares_follow_their_formula() -> None:
    """Hausser and Strimmer 2009, equation 6, for counts 5, 2 and 1."""
    labels = torch.nn.functional.one_hot(torch.tensor([0, 0, 0, 0, 0, 1, 1, 2]), 3)
    shares = np.array([5, 2, 1]) / 8
    part = (1 - (shares**2).sum()) / (7 * ((1 / 3 - shares) ** 2).sum())
    assert 0 < part < 1
    assert np.allclose(shrunk_shares(labels).numpy(), part / 3 + (1 - part) * shares)


def test_shares_of_one_class_and_of_one_label() -> None:
    assert shrunk_shares(torch.tensor([[0, 1], [0, 1], [0, 1]])).tolist() == [0.0, 1.0]
    assert shrunk_shares(torch.tensor([[0, 1]])).tolist() == [0.5, 0.5]


def test_rows_in_few_directions_are_as_alike_as_before() -> None:
    mixed = some_features(60, 5, 1) @ some_features(5, 200, 2)
    small = compressed(mixed, 8, torch.Generator().manual_seed(0))
    assert small.shape == (60, 8)

    def cosines(rows: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize(rows.double(), dim=1)
        return unit @ unit.T

    assert torch.allclose(cosines(small), cosines(mixed), atol=1e-4)
    # What is narrow enough stays as it is.
    assert torch.equal(compressed(mixed, 200, torch.Generator()), mixed.float())


@pytest.mark.parametrize("width", [6, 60])
def test_regression_is_least_squares_with_a_penalty(width: int) -> None:
    """In both forms: fewer features than rows, and more."""
    rows = some_features(40, width)
    likely = torch.nn.functional.softmax(some_features(40, 3, 7), dim=1)
    centred = (rows - rows.mean(dim=0)).numpy()
    wanted = np.eye(3)[likely.argmax(dim=1).numpy()]
    penalty = 0.7 * (centred**2).sum(axis=1).mean()
    gram = centred.T @ centred + penalty * np.eye(width)
    weights = np.linalg.solve(gram, centred.T @ (wanted - wanted.mean(axis=0)))
    scores = np.maximum(centred @ weights + wanted.mean(axis=0), 0)
    assert np.allclose(regressed(rows, likely, 0.7).numpy(), scores, atol=1e-5)


def test_regression_on_rows_that_are_all_equal_gives_the_shares() -> None:
    likely = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    scores = regressed(torch.ones(3, 4), likely, 1.0)
    assert torch.allclose(scores, torch.tensor([2 / 3, 1 / 3]).double().expand(3, 2))
