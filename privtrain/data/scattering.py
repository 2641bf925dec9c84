"""Scattering features of images: by wavelets fixed beforehand, so that they cost no privacy.

This is the only file that imports kymatio, which is an extra:
`pip install "privtrain[scattering]"`.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from privtrain.core.extras import check_installed
from privtrain.core.task import Rows

_AT_A_TIME = 500
"""How many images are transformed at once: the coefficients of so many fit into a cache."""


def scattering_features(images: Tensor, *, groups: int | None = 27) -> Tensor:
    """Scattering coefficients of two scales and eight directions, normalised image by image.

    Every feature is a function of its own image alone, and no filter was learned: the features of
    neighbouring data sets are neighbours.

    Args:
        images: Shape `(rows, channels, height, width)`; height and width divisible by 4.
        groups: The coefficients of an image are normalised in so many groups of channels, to mean
            zero and variance one; None leaves them as they are.

    Returns:
        Shape `(rows, 81 x channels, height / 4, width / 4)`.

    Raises:
        UnsupportedError: If kymatio is missing.
        ValueError: If the images have another number of dimensions or a side that 4 does not
            divide.

    Source: Oyallon and Mallat 2015 (arXiv:1412.8659); group normalisation as in Tramer and Boneh
    2021, section 2.2 (arXiv:2011.11660).
    """
    if images.dim() != 4 or images.shape[2] % 4 or images.shape[3] % 4:
        raise ValueError(
            f"Expected images of shape {tuple(images.shape)} to have shape (rows, channels, "
            "height, width) with sides that 4 divides; pad them."
        )
    transform = _transform((images.shape[2], images.shape[3]))
    features = []
    with torch.no_grad():
        for part in torch.split(images.float(), _AT_A_TIME):
            coefficients = transform(part.contiguous()).flatten(1, 2)
            # Section 2.2 of Tramer and Boneh: statistics of one image at a time. Normalising over
            # the data set would be a query on it, with noise and an epsilon of its own.
            if groups is not None:
                coefficients = nn.functional.group_norm(coefficients, groups * images.shape[1])
            features.append(coefficients)
    return torch.cat(features).to(images.dtype)


def scattered(rows: Rows, *, groups: int | None = 27) -> Rows:
    """The same rows, with the scattering features of their images as flat inputs."""
    return Rows(scattering_features(rows.inputs, groups=groups).flatten(1), rows.targets)


# Its filters follow from the shape alone, and take as long to make as a hundred images.
@functools.lru_cache(maxsize=4)
def _transform(shape: tuple[int, int]) -> Any:
    check_installed("A scattering transform", "kymatio")
    # Not `kymatio.torch`: that imports a module that newer versions of scipy no longer have.
    from kymatio.scattering2d.frontend.torch_frontend import ScatteringTorch2D

    # J scales and L directions: 1 coefficient of order 0, J L = 16 of order 1 and
    # L^2 J (J - 1) / 2 = 64 of order 2 make 81 channels.
    return ScatteringTorch2D(J=2, shape=shape, L=8)
