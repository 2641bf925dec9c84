"""The page beside a model."""

from dataclasses import replace

import privtrain as pt
from privtrain.core.recipe import Column, Encoder, Recipe
from privtrain.core.result import TrainResult
from privtrain.core.statement import PrivacyStatement
from privtrain.runs.model_card import model_card

TASK, DATA = pt.data.breast_cancer(parties=3)
RESULT = pt.fit(pt.DPSGD(epochs=1.0), TASK, DATA)


def with_guarantee(**changed: object) -> TrainResult:
    made = replace(RESULT.statement.guarantees[0], **changed)  # type: ignore[arg-type]
    return replace(RESULT, statement=PrivacyStatement(guarantees=(made,)))


def test_it_says_what_is_promised_rounded_up() -> None:
    page = model_card(with_guarantee(epsilon=2.272008))
    assert "| public | example | add-remove | 2.273 | 1e-05 | pld |" in page
    assert "stated by the user" not in page


def test_what_is_private_or_stated_is_not_shown_as_computed() -> None:
    assert "2.272" not in model_card(with_guarantee(epsilon=2.272008, data_dependent=True))
    assert "nobody here: stated by the user" in model_card(with_guarantee(stated=True))


def test_it_says_that_inf_promises_nothing() -> None:
    nothing = model_card(pt.fit(pt.SGD(epochs=1), TASK, DATA))
    assert "promises nothing" in nothing
    assert "promises nothing" not in model_card(RESULT)


def test_what_was_read_from_rows_is_said() -> None:
    columns = (Column(name="a|b", words=("<x>", "y"), read=True),)
    recipe = Recipe(
        factory={"printed": "mine"}, seed=0, encoder=Encoder(shape=(2,), columns=columns)
    )
    page = model_card(replace(RESULT, recipe=recipe))
    assert "Read from the rows, and not stated: the words of column 'a|b'" in page
    assert "a\\|b" in page and "<x>" not in page
    assert 'load_model("FOLDER", model=WHAT_MADE_IT)' in page
    assert "Read from the rows" not in model_card(RESULT)


def test_it_has_settings_versions_and_figures() -> None:
    page = model_card(RESULT, {"accuracy": "0.9000"})
    assert "DPSGD(epochs=1.0" in page and "public seed: 0" in page and "torch" in page
    assert "no guarantee covers:\n\n- accuracy: 0.9000" in page
    assert "How good it is" not in model_card(RESULT)


def test_a_result_made_by_hand_has_a_page_too() -> None:
    assert model_card(replace(RESULT, card={}, recipe=None)).startswith("# A trained model")


def test_a_simulation_says_that_it_protects_from_nobody() -> None:
    assert "**Simulated.**" in model_card(RESULT)
    real = pt.fit(pt.DPSGD(epochs=1.0), TASK, DATA, entropy=pt.SYSTEM)
    assert "Simulated" not in model_card(real) and "entropy: system" in model_card(real)
