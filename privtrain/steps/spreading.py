"""Labels of a few rows, spread over a graph of the nearest neighbours of all rows."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from scipy import sparse

_AT_A_TIME = 2**24
"""How many similarities are held at once: 64 MiB of them."""

_CLOSE, _MOST = 1e-8, 1000
"""Where solving ends: the relative residual, and how many steps it may take."""

_SWEEPS = 12


def compressed(features: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Rows in the directions in which they vary most, so that many can be compared.

    Args:
        features: Shape `(rows, features)`, floating point.
        width: How many directions; features of no more than that stay as they are.
        generator: Where the first directions come from.

    Returns:
        Shape `(rows, width)`, or the features, float32.

    Source: Halko, Martinsson and Tropp 2011 (arXiv:0909.4061), Algorithm 4.4.
    """
    rows = features.float()
    if rows.shape[1] <= width or len(rows) <= width:
        return rows
    basis = torch.randn(rows.shape[1], width, generator=generator).to(rows.device)
    for _ in range(2):
        basis, _ = torch.linalg.qr(rows.T @ (rows @ basis))
    return rows @ basis


def neighbour_graph(features: Tensor, neighbours: int) -> "sparse.csr_array":
    """The graph that joins each row to those most similar to it, by the cosine of their features.

    Args:
        features: Shape `(rows, features)`, floating point, finite.
        neighbours: To how many others each row is joined; of fewer rows, to all others.

    Returns:
        Symmetric weights, shape `(rows, rows)`, from 0 to 1, none on the diagonal.
    """
    from scipy import sparse  # heavy, and needed here only

    rows = torch.nn.functional.normalize(features.float(), dim=1)
    count = len(rows)
    most = min(neighbours, count - 1)
    columns, weights = [], []
    step = max(1, _AT_A_TIME // count)
    # The matrix of all similarities would take 14 GB for 60,000 rows.
    for start in range(0, count, step):
        part = rows[start : start + step] @ rows.T
        part.diagonal(start).fill_(-2.0)  # below any cosine
        nearest = part.topk(most, dim=1)
        columns.append(nearest.indices.cpu().numpy())
        weights.append(nearest.values.clamp(min=0.0).cpu().numpy())
    ends = np.arange(count + 1) * most
    parts = (np.concatenate(weights).ravel(), np.concatenate(columns).ravel(), ends)
    directed = sparse.csr_array(parts, shape=(count, count)).astype(np.float64)
    return directed.maximum(directed.T).tocsr()


def spread(graph: "sparse.csr_array", labels: Tensor, alpha: float) -> Tensor:
    """How much of each class reaches each row over a graph.

    Args:
        graph: Symmetric weights, shape `(rows, rows)`.
        labels: How much of each class is put where, shape `(rows, classes)`; zero where nothing is
            known.
        alpha: Which part of a row's scores comes from its neighbours, in (0, 1).

    Returns:
        Scores, shape `(rows, classes)`, float64, at least zero.

    Source: Zhou et al. 2003, Learning with local and global consistency, Section 2.
    """
    from scipy import sparse
    from scipy.sparse.linalg import cg

    degrees = graph.sum(axis=1)
    scale = np.where(degrees > 0, 1.0 / np.sqrt(np.where(degrees > 0, degrees, 1.0)), 0.0)
    # S = D^(-1/2) W D^(-1/2).
    normalised = graph.multiply(scale[:, None]).multiply(scale[None, :]).tocsr()
    known = (1.0 - alpha) * labels.double().cpu().numpy()
    system = (sparse.eye_array(graph.shape[0], format="csr") - alpha * normalised).tocsr()
    # Equation 3, F* = (1 - alpha) (I - alpha S)^(-1) Y, class by class; the system is positive.
    scores = [cg(system, column, rtol=_CLOSE, maxiter=_MOST)[0] for column in known.T]
    return torch.from_numpy(np.stack(scores, axis=1)).clamp(min=0.0)


def shrunk_shares(labels: Tensor) -> Tensor:
    """How common each class is, from a few labels: their shares, drawn towards equal ones.

    Few labels of equally common classes have unequal shares by chance; as far as they could, equal
    ones are believed.

    Args:
        labels: How much of each class is where, shape `(rows, classes)`, rows summing to 1.

    Returns:
        Shares, shape `(classes,)`, float64, which sum to 1.

    Source: Hausser and Strimmer 2009 (arXiv:0811.3579), equations 4 to 6.
    """
    count = len(labels)
    shares = labels.double().sum(dim=0) / count
    equal = torch.full_like(shares, 1.0 / len(shares))
    apart = float(((equal - shares) ** 2).sum())
    if count < 2 or apart == 0:
        return shares if apart == 0 or count > 1 else equal
    part = min(1.0, float(1.0 - (shares**2).sum()) / ((count - 1) * apart))
    return part * equal + (1.0 - part) * shares


def with_masses(scores: Tensor, shares: Tensor) -> Tensor:
    """Probabilities of the classes, of which each is as common over all rows as it should be.

    Args:
        scores: Shape `(rows, classes)`, at least zero.
        shares: Shape `(classes,)`, summing to 1.

    Returns:
        Probabilities, same shape; rows that nothing reached have those of `shares`.

    Source: class mass normalisation, Zhu, Ghahramani and Lafferty 2003, Section 4, repeated until
        rows and columns agree.
    """
    reached = scores.sum(dim=1) > 0
    likely = scores[reached]
    for _ in range(_SWEEPS):
        masses = likely.mean(dim=0)
        likely = likely * torch.where(masses > 0, shares / masses.clamp(min=1e-300), 0.0)
        totals = likely.sum(dim=1, keepdim=True)
        likely = torch.where(totals > 0, likely / totals.clamp(min=1e-300), shares)
    made = shares.expand(scores.shape).clone()
    made[reached] = likely
    return made


def regressed(features: Tensor, likely: Tensor, strength: float) -> Tensor:
    """What ridge regression on features makes of labels that are in part wrong.

    Args:
        features: Shape `(rows, features)`, floating point.
        likely: Probabilities of the classes, shape `(rows, classes)`; the largest one counts.
        strength: Penalty on the squared weights, in mean squared lengths of centred rows.

    Returns:
        Scores of the same rows, shape `(rows, classes)`, float64, at least zero.

    Source: Hoerl and Kennard 1970; labels of noisy neighbours are outvoted by the whole.
    """
    rows = features.float()
    rows = rows - rows.mean(dim=0)
    wanted = torch.nn.functional.one_hot(likely.argmax(dim=1), likely.shape[1]).to(rows)
    share = wanted.mean(dim=0)
    penalty = strength * float(rows.square().sum(dim=1).mean())
    if penalty == 0:
        return share.expand(wanted.shape).double().cpu()
    # Whichever system is smaller; both have the same solution.
    narrow = rows.shape[1] <= len(rows)
    gram = rows.T @ rows if narrow else rows @ rows.T
    gram.diagonal().add_(penalty)
    right = rows.T @ (wanted - share) if narrow else wanted - share
    weights: Tensor = torch.linalg.solve(gram, right)
    scores: Tensor = rows @ weights if narrow else rows @ (rows.T @ weights)
    return (scores + share).clamp(min=0.0).double().cpu()
