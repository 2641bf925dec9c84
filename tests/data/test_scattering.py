"""Scattering features: of one image each, and as the wavelets of two scales make them."""

import pytest
import torch

from privtrain.core.task import Rows
from privtrain.data.scattering import scattered, scattering_features

IMAGES = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def test_shapes_are_those_of_two_scales_and_eight_directions() -> None:
    features = scattering_features(IMAGES)
    assert features.shape == (6, 81, 7, 7)
    assert bool(torch.isfinite(features).all())
    rows = scattered(Rows(IMAGES, torch.arange(6)))
    assert rows.inputs.shape == (6, 3969)
    assert torch.equal(rows.labels, torch.arange(6))


@pytest.mark.slow
def test_features_of_an_image_do_not_depend_on_the_others() -> None:
    together = scattering_features(IMAGES.double())
    for index in range(len(IMAGES)):
        alone = scattering_features(IMAGES[index : index + 1].double())[0]
        torch.testing.assert_close(together[index], alone, atol=1e-4, rtol=0)
    others = IMAGES.clone()
    others[1:] = 1 - others[1:]
    torch.testing.assert_close(
        scattering_features(others)[0], scattering_features(IMAGES)[0], atol=1e-4, rtol=0
    )


def test_groups_of_an_image_have_mean_zero_and_variance_one() -> None:
    raw = scattering_features(IMAGES, groups=None).double().reshape(6, 27, -1)
    mean, variance = raw.mean(dim=2, keepdim=True), raw.var(dim=2, correction=0, keepdim=True)
    plain = (raw - mean) / (variance + 1e-5).sqrt()
    groups = scattering_features(IMAGES).double().reshape(6, 27, -1)
    torch.testing.assert_close(groups, plain, atol=2e-3, rtol=0)


def test_the_first_channel_is_a_local_mean() -> None:
    flat = scattering_features(torch.full((1, 1, 28, 28), 0.5), groups=None)
    torch.testing.assert_close(flat[0, 0], torch.full((7, 7), 0.5), atol=1e-3, rtol=0)
    # A wavelet sees nothing in an image of one value.
    assert float(flat[0, 1:].abs().max()) < 1e-3


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 1, 30, 30\)"):
        scattering_features(torch.zeros(2, 1, 30, 30))
    with pytest.raises(ValueError, match="images"):
        scattering_features(torch.zeros(2, 784))
