"""The page's tables of attacks are those that follow from the attacks."""

from privtrain.command.tokens import ATTACK_TOKENS
from tests.docs.taxonomy import MARKS, PAGE, tables, written


def test_the_page_shows_what_attacks_say_of_themselves() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert MARKS.search(text) is not None
    assert text == written(), "write it anew: python -m tests.docs.taxonomy"


def test_every_attack_stands_in_both_tables() -> None:
    by_observer, by_attack = tables().split("\n\n")
    for token in ATTACK_TOKENS:
        assert f"`{token}`" in by_observer
        assert f"| `{token}` |" in by_attack
