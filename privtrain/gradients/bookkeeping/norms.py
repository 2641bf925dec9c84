"""Upper bounds of the norms of per-example gradients, rounding included."""

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

CHUNK = 2**19
"""Values that are worked on at a time: what fits into a processor's cache."""

PIECE = 256
"""Values whose squares are added up in their own type: fewer is slower, more is less precise."""

_LEVELS = 5
"""How often squares are added up at most: enough for 128^4 x 256 values."""

_FORMING = 0.2
"""Cost of Gram matrices in float64 beside that of a pass over the formed gradient, measured."""


@lru_cache
def unit(dtype: torch.dtype) -> float:
    """The largest relative error of one rounding."""
    return torch.finfo(dtype).eps / 2


@lru_cache
def _smallest(dtype: torch.dtype) -> float:
    """The smallest normal number: a square below it may vanish."""
    return torch.finfo(dtype).tiny


def row_norms(values: Tensor) -> Tensor:
    """Upper bounds of the norms along the last dimension, float64.

    Squares are added in the type of the values.
    """
    length, dtype = values.shape[-1], values.dtype
    norms: Tensor = torch.linalg.vector_norm(values, dim=-1).double()
    # A sum of n squares is off by a factor of at most 1 + n x unit, whatever its order,
    # and so its root by half as much.
    norms.mul_(1 + (length / 2 + 4) * unit(dtype))
    # Each square may have vanished below the smallest number.
    return norms.add_(math.sqrt(length * _smallest(dtype)))


def piece_norms(values: Tensor) -> Tensor:
    """Norms of pieces, whose rows have nearly the norms of the rows of values.

    Args:
        values: Shape `(batch, values)`.

    Returns:
        Shape `(batch, pieces)`; the values themselves where they are few.
    """
    length = values.shape[1]
    if length <= PIECE:
        return values
    piece = _piece(length)
    whole = length // piece * piece
    pieces = values[:, :whole].reshape(len(values), whole // piece, piece)
    norms: Tensor = torch.linalg.vector_norm(pieces, dim=-1)
    if whole < length:
        rest = torch.linalg.vector_norm(values[:, whole:], dim=-1, keepdim=True)
        norms = torch.cat([norms, rest], dim=1)
    return piece_norms(norms)


@lru_cache(maxsize=1024)
def _piece(length: int) -> int:
    """The longest piece that rows can be cut into evenly, if it is long enough."""
    return next((n for n in range(PIECE, PIECE // 2, -1) if length % n == 0), PIECE)


def bounded_squares(short: list[Tensor], values: int) -> Tensor:
    """Upper bounds of the squared norms of rows from the norms of their pieces.

    Args:
        short: What `piece_norms` returned for each tensor; of one number of rows.
        values: How many values a row had at most.

    Returns:
        Shape `(tensors, rows)`, float64.
    """
    norms = torch.stack([torch.linalg.vector_norm(pieces, dim=1) for pieces in short])
    coarsest = max((pieces.dtype for pieces in short), key=unit)
    # Squares were added in the type of the values, a piece at a time: each level is off by a factor
    # of at most 1 + PIECE x unit, however long the rows are.
    slack = 1 + _LEVELS * (PIECE / 2 + 4) * unit(coarsest)
    vanished = 2 * math.sqrt(values * _smallest(coarsest))
    return norms.double().mul_(slack).add_(vanished).square_()


def formed_squares(gradients: Tensor) -> Tensor:
    """Upper bounds of the squared norms of gradients, `(batch, ...)`, shape `(batch,)`."""
    flat = gradients.flatten(1)
    return bounded_squares([piece_norms(flat)], flat.shape[1])[0]


def with_error(squares: Tensor, error: Tensor | None) -> Tensor:
    """Squares of norms to which an error is added."""
    return squares if error is None else (squares.sqrt() + error).square()


def forming_pays(values: int, time: int, widths: int) -> bool:
    """Whether a sum over time of outer products is cheaper to form than to measure unformed.

    Forming it takes the place of the matrix product at the end, so that only passing over its
    values counts, against Gram matrices over time.

    Args:
        values: How many values it has.
        time: How many outer products are added up.
        widths: Length of both of their factors.
    """
    return values <= _FORMING * time**2 * widths


def chunk_rows(values: int) -> int:
    """How many examples to work on at a time, if each takes so many values."""
    return max(1, CHUNK // max(1, values))


def outer_squares(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Squared norms of sums over time of outer products, by the cheaper form.

    Gram matrices are formed in float64. What they may have lost by cancellation is added; where
    that is more than a small part of the result, the gradient itself is formed and measured.

    Args:
        inputs: Activations, shape `(batch, time, in)`.
        outputs: Output gradients, shape `(batch, time, out)`.

    Returns:
        Shape `(batch,)`, float64.
    """
    time, width, height = inputs.shape[1], inputs.shape[2], outputs.shape[2]
    # The layerwise decision of the hybrid BK (Bu et al. 2023): form the gradient where 2 T^2
    # values of Gram matrices are more than its own p x d.
    if 2 * time**2 >= width * height:
        return formed_squares(torch.bmm(outputs.transpose(1, 2), inputs))
    # The ghost norm (Bu et al. 2023): the sum over pairs of steps of <a_s, a_t> <b_s, b_t>. In
    # float64, since its terms cancel where steps do: in float32 a contribution could exceed the
    # clipping norm many times.
    a, b = inputs.double(), outputs.double()
    products = torch.bmm(a, a.transpose(1, 2)).mul_(torch.bmm(b, b.transpose(1, 2)))
    squares = products.sum(dim=(1, 2))
    lost = (width + height + 32) * unit(torch.float64) * _magnitudes(a, b).square()
    tolerance = 1e-10 if inputs.dtype is torch.float64 else 1e-5
    # What cancellation may have taken is added; where that is more than a small part of the result,
    # the gradient itself is formed and measured. Not a number is doubtful, too.
    doubtful = ~(lost <= tolerance * squares)
    squares = squares.clamp_min(0) + lost
    if bool(doubtful.any()):
        few = torch.bmm(outputs[doubtful].transpose(1, 2), inputs[doubtful])
        squares[doubtful] = formed_squares(few)
    return squares


def over_chunks(chunks: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Squared norms and errors of sums over time of outer products, a few examples at a time."""
    squares, errors = [], []
    for inputs, outputs in chunks:
        squares.append(outer_squares(inputs, outputs))
        errors.append(rounding(inputs, outputs))
    return torch.cat(squares), torch.cat(errors)


def rounding(inputs: Tensor, outputs: Tensor) -> Tensor:
    """By how much two sums over time of outer products may differ, whatever their order.

    Args:
        inputs: Activations, shape `(batch, time, in)`.
        outputs: Output gradients, shape `(batch, time, out)`.

    Returns:
        A bound on the L2 norm of the difference, shape `(batch,)`, float64.

    Source: Higham 2002, Accuracy and Stability of Numerical Algorithms, section 3.5.
    """
    return 2 * (inputs.shape[1] + 2) * unit(inputs.dtype) * _magnitudes(inputs, outputs)


def _magnitudes(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Sums over time of the norms of the outer products: what cancellation is measured against."""
    return (row_norms(inputs) * row_norms(outputs)).sum(dim=1)
