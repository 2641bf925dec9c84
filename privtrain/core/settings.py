"""Settings of the process that a model may change, and that the next run would be computed with."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def kept_settings() -> Iterator[None]:
    """Puts back what a model, loss or optimizer may have set within a run.

    These are torch's default type and whether it records gradients, and what numpy does about
    floating-point errors. Other threads share the default type.
    """
    dtype, records, errors = torch.get_default_dtype(), torch.is_grad_enabled(), np.geterr()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(records)
        np.seterr(**errors)
