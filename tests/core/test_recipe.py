"""What is known of how inputs were made."""

import torch

from privtrain.core.recipe import Column, Encoder, encoder_of


def test_what_was_read_from_rows_is_named() -> None:
    columns = (Column(name="age"), Column(name="city", words=("Bern",), read=True))
    encoder = Encoder(shape=(2,), columns=columns, classes=("no", "yes"), classes_read=True)
    assert encoder.read == ("the words of column 'city'", "the names of the classes")
    assert Encoder(shape=(2,), columns=columns[:1], classes=("no", "yes")).read == ()


def test_an_indicator_is_one_more_input() -> None:
    assert Column(name="age", stand_in="0.0", indicator=True).width == 2
    assert Column(name="city", words=("Bern", "Rome"), stand_in="\0", indicator=True).width == 3


def test_an_encoder_of_other_inputs_is_not_believed() -> None:
    known = Encoder(shape=(3,), dtype="float64", scale=((0.0,), (1.0,)))
    assert encoder_of(torch.zeros(5, 3), None, known).scale == known.scale
    assert encoder_of(torch.zeros(5, 3), None, known).dtype == "float32"
    assert encoder_of(torch.zeros(5, 4), None, known) == Encoder(shape=(4,))
    assert encoder_of(torch.zeros(5, 1, 2, dtype=torch.int64), None, None).dtype == "int64"


def test_real_targets_are_no_classes() -> None:
    assert encoder_of(torch.zeros(5, 3), torch.zeros(5), None).values
    assert not encoder_of(torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64), None).values
