"""Values in few lines."""

from privtrain.core import shown


def test_empty_parts_are_left_out() -> None:
    assert shown.lines("Title", left_out="", in_it="yes") == "Title\n  in it: yes"


def test_long_lists_and_texts_are_cut() -> None:
    assert shown.first(["a", "b", "c"], 2) == "a; b; and 1 more"
    assert shown.first(["a", "b"], 2) == "a; b"
    assert shown.cut("one\n two  three", 9) == "one two…"


def test_html_escapes_every_text() -> None:
    made = shown.table(("<a>",), [("<script>",)], "<b>") + shown.listed("<c>", ["<d>"])
    assert not any(mark in made for mark in ("<a>", "<script>", "<b>", "<c>", "<d>"))
    assert "&lt;script&gt;" in made
    assert shown.listed("title", []) == ""
