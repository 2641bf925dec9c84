"""Moved images against scipy's affine maps, in float64."""

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from privtrain.core.errors import DataError
from privtrain.steps.augmentation import Affine


def images(count: int = 6, side: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 1, side, side, generator=generator, dtype=torch.float64)


def draws(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_images_are_moved_as_an_affine_map_says() -> None:
    """Resized, turned, leant and moved about the middle, by amounts of each image's own."""
    affine, before = Affine(), images()
    after = affine(before, draws())
    drawn = torch.rand(6, 6, generator=draws()).double().numpy() * 2 - 1
    for image, moved, (turn, lean, wide, high, right, down) in zip(
        before, after, drawn, strict=True
    ):
        angle, slant = math.radians(12 * turn), math.tan(math.radians(8 * lean))
        turned = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        resized = np.diag([1 / (1 + 0.12 * wide), 1 / (1 + 0.12 * high)])
        matrix = resized @ turned @ np.array([[1, slant], [0, 1]])
        # scipy counts rows first, in pixels from the corner.
        matrix = matrix[::-1, ::-1]
        offset = 0.08 * 12 * np.array([down, right])
        middle = np.full(2, 5.5)
        wanted = ndimage.affine_transform(
            image[0].numpy(),
            matrix,
            middle + offset - matrix @ middle,
            order=1,
            mode="grid-constant",
        )
        assert np.allclose(moved[0].numpy(), wanted, atol=1e-5)


def test_no_amounts_leave_images_as_they_are() -> None:
    still = Affine(shift=0.0, rotation=0.0, scale=0.0, shear=0.0)
    assert torch.allclose(still(images(), draws()), images(), atol=1e-6)


def test_rows_of_pixels_are_moved_as_the_images_that_they_are() -> None:
    flat = Affine(sides=(12, 12))
    assert torch.equal(
        flat(images().reshape(6, -1), draws()), Affine()(images(), draws()).reshape(6, -1)
    )
    assert flat.moves(images().reshape(6, -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_types_stay_and_a_stream_gives_the_same_moves(dtype: torch.dtype) -> None:
    moved = Affine()(images().to(dtype), draws())
    assert moved.dtype == dtype
    assert torch.equal(moved, Affine()(images().to(dtype), draws()))
    assert not torch.equal(moved, Affine()(images().to(dtype), draws(4)))


def test_what_is_an_image() -> None:
    table, tokens = torch.zeros(3, 10), torch.zeros(3, 1, 8, 8, dtype=torch.long)
    assert Affine().moves(images())
    assert not Affine().moves(table) and not Affine().moves(tokens)
    assert not Affine(sides=(8, 8)).moves(table)
    Affine().check(table)
    with pytest.raises(DataError, match=r"sides=\(8, 8\)"):
        Affine(sides=(8, 8)).check(table)


def test_a_rectangle_is_erased_from_each_image() -> None:
    ones = torch.ones(200, 2, 10, 10)
    gone = Affine().erased(ones, 0.4, draws()) == 0
    assert torch.equal(gone[:, 0], gone[:, 1])
    sizes = gone[:, 0].double().sum(dim=(1, 2))
    assert float(sizes.max()) == 16.0 and float(sizes.min()) >= 4.0
    assert len({str(each.tolist()) for each in gone[:, 0]}) > 30
    assert torch.equal(Affine().erased(ones, 0.0, draws()), ones)


def test_a_stronger_one_moves_further_within_bounds() -> None:
    assert Affine().times(2.0) == replace(Affine(), shift=0.16, rotation=24.0, scale=0.24, shear=16)
    assert Affine().times(100.0).scale < 1 and Affine().times(100.0).shear < 90


@pytest.mark.parametrize(
    "setting",
    [
        {"shift": -0.1},
        {"rotation": -1.0},
        {"scale": 1.0},
        {"shear": 90.0},
        {"sides": (8,)},
        {"sides": (8, 0)},
    ],
)
def test_settings_out_of_range_are_named(setting: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        Affine(**setting)  # type: ignore[arg-type]


def test_it_is_a_value() -> None:
    assert pickle.loads(pickle.dumps(Affine(sides=(8, 8)))) == Affine(sides=(8, 8))
