"""Public rows as a student gets them."""

import torch

from privtrain.core.seeding import Seeds
from privtrain.steps.student import PublicInputs, by_chance


def test_features_are_mapped_once_and_only_where_they_are_asked_for() -> None:
    calls = []

    def doubled(inputs: torch.Tensor) -> torch.Tensor:
        calls.append(len(inputs))
        return 2 * inputs

    inputs = torch.arange(6.0).reshape(3, 2)
    public = PublicInputs(inputs, doubled)
    assert len(public) == 3 and not calls
    assert torch.equal(public.mapped, 2 * inputs)
    assert torch.equal(public.mapped, 2 * inputs)
    assert calls == [3]
    assert torch.equal(PublicInputs(inputs).mapped, inputs)


def test_rows_by_chance_are_drawn_once_each() -> None:
    chosen = by_chance(50, 20, Seeds(1))
    assert len(set(chosen.tolist())) == 20
    assert sorted(by_chance(5, 20, Seeds(1)).tolist()) == list(range(5))
    assert not torch.equal(chosen, by_chance(50, 20, Seeds(2)))
