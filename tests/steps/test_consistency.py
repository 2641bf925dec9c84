"""Rows that a model labels itself, by hand."""

import pytest
import torch
from torch import Tensor, nn

from privtrain.steps.augmentation import Affine
from privtrain.steps.consistency import Consistency, Examples

STILL = Affine(shift=0.0, rotation=0.0, scale=0.0, shear=0.0)


class Bright(nn.Module):
    """Two classes: sure of images that are bright or dark, and unsure of others."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(20.0))

    def forward(self, images: Tensor) -> Tensor:
        score = self.slope * (images.flatten(1).mean(dim=1) - 0.5)
        return torch.stack([-score, score], dim=1)


def test_rows_count_where_the_model_is_sure_of_them_moved_a_little() -> None:
    images = torch.tensor([0.0, 0.5, 1.0]).reshape(3, 1, 1, 1).expand(3, 1, 6, 6).contiguous()
    model = Bright().train()
    chosen = Consistency(threshold=0.9, weight=0.5, share=3, erased=0.0)
    examples = chosen.more(model, images, 20, STILL, torch.Generator().manual_seed(0))
    assert len(examples.inputs) == 60 and model.training
    level = examples.inputs.flatten(1).mean(dim=1)
    assert set(level.tolist()) == {0.0, 0.5, 1.0}
    for brightness, label, weight in zip(
        level.tolist(), examples.labels.tolist(), examples.weights.tolist(), strict=True
    ):
        assert weight == (0.0 if brightness == 0.5 else 0.5)
        assert brightness == 0.5 or label == int(brightness)


def test_what_is_learned_is_moved_further_and_partly_erased() -> None:
    images = torch.ones(2, 1, 8, 8)
    examples = Consistency(erased=0.5, share=10).more(
        Bright(), images, 10, STILL, torch.Generator().manual_seed(0)
    )
    zeros = (examples.inputs == 0).double().mean(dim=(1, 2, 3))
    assert float(zeros.min()) > 0 and float(zeros.max()) == pytest.approx(0.25)
    weak = Affine(shift=0.1)
    moved = Consistency(erased=0.0).more(
        Bright(), images, 4, weak, torch.Generator().manual_seed(0)
    )
    assert not torch.equal(moved.inputs, torch.ones(8, 1, 8, 8))


def test_they_stand_behind_the_others() -> None:
    one = Examples(torch.ones(2, 3), torch.ones(2, dtype=torch.long), torch.zeros(2))
    inputs, labels, weights = one.beside(
        torch.zeros(1, 3), torch.zeros(1, dtype=torch.long), torch.ones(1)
    )
    assert inputs.tolist() == [[0.0] * 3, [1.0] * 3, [1.0] * 3]
    assert (labels.tolist(), weights.tolist()) == ([0, 1, 1], [1.0, 0.0, 0.0])


@pytest.mark.parametrize(
    "setting", [{"threshold": 1.0}, {"erased": 1.0}, {"weight": 0.0}, {"share": 0}, {"stronger": 0}]
)
def test_settings_out_of_range_are_named(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        Consistency(**setting)  # type: ignore[arg-type]
