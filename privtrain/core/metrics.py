"""Metrics that fit most tasks: how right, how well ranked, how near outputs are."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from privtrain.core.errors import DataError


@dataclass(frozen=True)
class Decisions:
    """What a model decides beside what is true, as class numbers.

    Args:
        predicted: Shape `(rows,)`; `(rows, labels)` where each row has several yes-or-no labels;
            `(rows, ...)` where each row has several places.
        truth: The same for the targets.
        labels: Whether rows have several yes-or-no labels.
    """

    predicted: Tensor
    truth: Tensor
    labels: bool = False


def decisions(outputs: Tensor, targets: Tensor) -> Decisions:
    """What outputs decide, by the largest logit, or by the sign of a single one.

    Args:
        outputs: Logits `(rows, classes)` or `(rows, classes, ...)`; one logit a row, `(rows,)` or
            `(rows, 1)`, which says class 1 above zero; or logits of yes-or-no labels
            `(rows, labels)`, each by itself.
        targets: Class numbers `(rows,)` or `(rows, ...)`, those of single logits 0 or 1; or 0 and 1
            in the shape of the outputs, where one 1 in every row is a class.

    Returns:
        The decisions.

    Raises:
        DataError: If the targets are no classes beside such outputs, or outputs are not numbers.
    """
    # Of NaN the largest is "the first one": a model that broke would get an accuracy.
    broken = int(outputs.isnan().sum())
    if broken:
        raise DataError(
            f"Expected outputs to be numbers; of {outputs.numel()} of them {broken} are not "
            "(NaN). The model may have diverged: try a smaller learning rate."
        )
    rows = len(outputs)
    if outputs.numel() == rows and targets.numel() == rows and _is_yes_or_no(targets):
        return Decisions((outputs.reshape(rows) > 0).long(), targets.reshape(rows).long())
    if outputs.ndim == 2 and outputs.shape == targets.shape and _is_yes_or_no(targets):
        if bool((targets.sum(dim=1) == 1).all()):
            return Decisions(outputs.argmax(dim=1), targets.long().argmax(dim=1))
        return Decisions((outputs > 0).long(), targets.long(), labels=True)
    # Beside (rows,) a column (rows, 1) would be compared with every row.
    column = outputs.ndim == 2 and targets.shape == (rows, 1)
    truth = targets.reshape(rows) if column else targets
    classes = outputs.ndim > 1 and outputs.shape[1] > 1
    if classes and truth.shape == outputs.shape[:1] + outputs.shape[2:] and _is_whole(truth):
        return Decisions(outputs.argmax(dim=1), truth.long())
    raise DataError(
        f"Expected targets of shape {tuple(targets.shape)} and type {targets.dtype} to be class "
        f"numbers beside outputs of shape {tuple(outputs.shape)}; they are none. Of real values "
        "use rmse or r2, as by Task(metrics={'rmse': pt.rmse})."
    )


def _is_yes_or_no(targets: Tensor) -> bool:
    return bool(((targets == 0) | (targets == 1)).all())


def _is_whole(targets: Tensor) -> bool:
    return not targets.is_floating_point() or bool((targets == targets.round()).all())


def accuracy(logits: Tensor, targets: Tensor) -> float:
    """Fraction of rows that are answered rightly, in 0..1; of several labels a row all must be.

    Args:
        logits: Shape `(rows, classes)`; or one logit a row, `(rows, 1)` or `(rows,)`, which says
            class 1 where it is above zero and class 0 elsewhere; or `(rows, labels)`.
        targets: Class numbers, shape `(rows,)`; beside a single logit `(rows, 1)`, too; or 0 and 1
            for each label, `(rows, labels)`.

    Returns:
        The accuracy.

    Raises:
        DataError: If targets are no classes, or outputs are not numbers.
    """
    decided = decisions(logits, targets)
    right = decided.predicted == decided.truth
    # In float64 a mean of zeros and ones is the correctly rounded fraction of whole counts.
    return float((right.all(dim=1) if decided.labels else right).double().mean())


def balanced_accuracy(logits: Tensor, targets: Tensor) -> float:
    """Mean over the classes of the fraction of their rows that are answered rightly, in 0..1.

    Whoever always says the commonest class reaches one over the number of classes.

    Args:
        logits: As `accuracy` takes them. Of several labels a row it is the mean over labels.
        targets: As `accuracy` takes them; a class that none of them names is left out.

    Returns:
        The balanced accuracy.

    Raises:
        DataError: If targets are no classes, or outputs are not numbers.

    Source: Brodersen et al. 2010. Equal to scikit-learn's `balanced_accuracy_score`.
    """
    decided = decisions(logits, targets)
    # One column for each label; else all places of all rows in one.
    columns = decided.truth.shape[1] if decided.labels else 1
    predicted, truth = (
        each.cpu().reshape(-1, columns).numpy() for each in (decided.predicted, decided.truth)
    )
    # By counting: scikit-learn takes milliseconds a call, and an interval takes hundreds of calls.
    recalls = []
    for said, true in zip(predicted.T, truth.T, strict=True):
        of_class = np.bincount(true)
        right = np.bincount(true[said == true], minlength=len(of_class))
        recalls.append((right[of_class > 0] / of_class[of_class > 0]).mean())
    return float(np.mean(recalls))


def auc(logits: Tensor, targets: Tensor) -> float:
    """Area under the ROC curve: how likely a row of a class scores above a row of another, 0..1.

    Of more than two classes it is the mean over classes, each against all others, by softmax; of
    several labels a row the mean over labels.

    Args:
        logits: As `accuracy` takes them.
        targets: As `accuracy` takes them; a class that none or all of them name is left out.

    Returns:
        The area; 0.5 for a coin.

    Raises:
        DataError: If targets are no classes, or all of one class, or outputs are not numbers.

    Source: Hanley and McNeil 1982. Equal to scikit-learn's `roc_auc_score`.
    """
    decided = decisions(logits, targets)
    wide = logits.detach().double().cpu()
    truth = decided.truth.cpu()
    if decided.labels:
        pairs = list(zip(wide.T, truth.T, strict=True))
    elif logits.numel() == len(logits):
        pairs = [(wide.reshape(-1), truth)]
    elif logits.ndim == 2 and logits.shape[1] == 2:
        # The margin orders rows as the probability does, and never rounds to 1.
        pairs = [(wide[:, 1] - wide[:, 0], truth)]
    else:
        chances = wide.softmax(dim=1).movedim(1, -1).reshape(-1, wide.shape[1])
        flat = truth.reshape(-1)
        pairs = [(chances[:, each], flat == each) for each in range(wide.shape[1])]
    areas = [
        _area(scores.numpy(), members.bool().numpy())
        for scores, members in pairs
        if 0 < int(members.sum()) < len(members)
    ]
    if not areas:
        raise DataError(
            f"Expected targets of two classes at least, which auc tells apart; all "
            f"{len(targets)} are of one."
        )
    return float(sum(areas) / len(areas))


def _area(scores: NDArray[np.float64], members: NDArray[np.bool_]) -> float:
    """How often a row of the class scores above another one; a tie counts half."""
    inside, outside = scores[members], np.sort(scores[~members])
    below = np.searchsorted(outside, inside, "left").sum()
    upto = np.searchsorted(outside, inside, "right").sum()
    return float((int(below) + int(upto)) / (2 * len(inside) * len(outside)))


def rmse(outputs: Tensor, targets: Tensor) -> float:
    """Root of the mean squared error, in the unit of the targets; less is better.

    Args:
        outputs: Shape `(rows,)`, `(rows, 1)` or `(rows, values)`; of several values it is the mean
            over them.
        targets: The same shape, but for a dimension of one.

    Returns:
        The error, at least 0.

    Raises:
        DataError: If the shapes do not fit.

    Equal to scikit-learn's `root_mean_squared_error`.
    """
    predicted, truth = _values(outputs, targets)
    return float(np.sqrt(np.square(predicted - truth).mean(axis=0)).mean())


def r2(outputs: Tensor, targets: Tensor) -> float:
    """Fraction of the targets' variance that outputs explain: 1 is best, 0 that of their mean.

    Args:
        outputs: As `rmse` takes them; of several values it is the mean over them.
        targets: As `rmse` takes them.

    Returns:
        The fraction, at most 1; below 0 where the mean of the targets would be nearer.

    Raises:
        DataError: If the shapes do not fit, or there are fewer than two rows.

    Equal to scikit-learn's `r2_score`; of targets that are all alike it is 1 or 0, as there.
    """
    predicted, truth = _values(outputs, targets)
    if len(truth) < 2:
        raise DataError(f"Expected {len(truth)} rows to be two at least, as r2 takes a variance.")
    left = np.square(predicted - truth).sum(axis=0)
    varied = np.square(truth - truth.mean(axis=0)).sum(axis=0)
    explained = np.where(left == 0, 1.0, 0.0)
    np.divide(varied - left, varied, out=explained, where=varied > 0)
    return float(explained.mean())


def _values(outputs: Tensor, targets: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Predicted and true values as arrays of one shape, `(rows, values)`."""
    squeezed = [[size for size in each.shape[1:] if size != 1] for each in (outputs, targets)]
    # Outputs (rows, 1) minus targets (rows,) would pair each row with all others.
    if len(outputs) != len(targets) or squeezed[0] != squeezed[1]:
        raise DataError(
            f"Expected outputs of shape {tuple(outputs.shape)} and targets of shape "
            f"{tuple(targets.shape)} to hold equally many values for each row."
        )
    rows = len(outputs)
    predicted, truth = (
        each.detach().double().cpu().reshape(rows, -1).numpy() for each in (outputs, targets)
    )
    return predicted, truth
