"""What a loader did to the columns of a table, so that a new table can be treated alike."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from privtrain.core.recipe import Column, Encoder
from privtrain.core.task import FederatedData


def encoded_by(
    data: FederatedData,
    *,
    scale: tuple[ArrayLike, ArrayLike] | None = None,
    columns: Iterable[Column] | None = None,
    **known: Any,
) -> FederatedData:
    """The same data, whose encoder knows more of how the inputs were made.

    Args:
        data: What `federate` made.
        scale: Public lowest and highest values of arrays.
        columns: The columns of a table.
        known: Further fields of the `Encoder`.
    """
    before = data.encoder or Encoder(shape=tuple(data.test.inputs.shape[1:]))
    if scale is not None:
        low, high = (np.asarray(end, dtype=np.float64).ravel().tolist() for end in scale)
        known["scale"] = (tuple(low), tuple(high))
    if columns is not None:
        known["columns"] = tuple(columns)
    return replace(data, encoder=replace(before, **known))
