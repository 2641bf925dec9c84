"""What a report shows of votes: figures and a picture in which the private part is marked."""

from dataclasses import replace
from pathlib import Path

from privtrain.core.observers import PUBLIC
from privtrain.core.result import Comparison, History, Row, VotesSeen
from privtrain.core.statement import EXACT_PRIVATE, REPLACE_ONE, ExactCost, Unit
from privtrain.report import files
from privtrain.report.html import comparison_html
from privtrain.report.latex import to_latex
from privtrain.report.records import records
from privtrain.report.summary import groups
from privtrain.report.table import comparison_text
from privtrain.report.votes import PRIVATE, vote_figures, votes_seen
from tests.report import examples

VOTES = VotesSeen(
    asked=487,
    answered=286,
    label_accuracy=0.986,
    agreement=0.93706,
    top_shares=(0,) * 14 + (3, 7, 20, 56, 100, 100),
    epsilon=((98, 0.31), (773, 0.58719)),
)
EXACT = ExactCost(
    observer=PUBLIC, unit=Unit.EXAMPLE, relation=REPLACE_ONE, epsilon=0.58719, delta=1e-5,
    releases=773, method="quadrature",
)  # fmt: skip


def a_row(seed: int = 0, votes: VotesSeen | None = VOTES) -> Row:
    row = examples.pate(seed, 3.0)
    assert row.statement is not None
    return replace(
        row,
        statement=replace(row.statement, exact=(EXACT,)),
        history=History(epsilon=[(98, 0.9), (773, 1.70)], votes=votes),
    )


def a_comparison(*rows: Row) -> Comparison:
    return Comparison(rows=rows or (a_row(),), card={})


def test_figures_are_means_over_seeds_and_a_dash_where_one_is_missing() -> None:
    other = replace(VOTES, answered=284, label_accuracy=None)
    (one,) = vote_figures(groups(a_comparison(a_row(0), a_row(1, other))))
    assert (one.asked, one.answered) == ("487", "285")
    assert one.label_accuracy == "–"
    assert one.agreement == "93.7%"
    assert vote_figures(groups(a_comparison(a_row(0, None)))) == ()


def test_the_picture_says_what_is_private_and_draws_it_dashed() -> None:
    picture = votes_seen(a_comparison())
    assert picture is not None
    assert PRIVATE in picture
    assert f"PATE (ε 3), {EXACT_PRIVATE}" in picture or f", {EXACT_PRIVATE}" in picture
    left, right = picture.figure.axes
    formal, private = left.get_lines()
    assert (formal.get_linestyle(), private.get_linestyle()) == ("-", "--")
    assert list(formal.get_ydata()) == [0.9, 1.70]
    assert list(private.get_ydata()) == [0.31, 0.58719]
    heights = right.patches[0].get_data().values
    assert tuple(heights) == VOTES.top_shares
    assert set(picture.files) == {"svg", "pdf"}
    assert PRIVATE.encode() in picture.files["svg"]


def test_there_is_no_picture_where_nothing_private_is_known() -> None:
    public = VotesSeen(asked=3, answered=2, label_accuracy=0.5)
    assert votes_seen(a_comparison(a_row(0, public))) is None
    assert votes_seen(a_comparison(a_row(0, None))) is None
    page = comparison_html(a_comparison(a_row(0, public)))
    assert "Votes of teachers" in page
    assert PRIVATE not in page


def test_the_page_marks_all_of_it() -> None:
    page = comparison_html(a_comparison())
    _, after = page.split('id="promises"')
    promises, rest = after.split('id="readers"')
    assert f"{EXACT_PRIVATE}: for these votes, no promise" in promises
    assert "0.588" in promises
    assert "May be published" in promises
    assert "Not to be published" in promises
    votes = rest.split("Votes of teachers")[1]
    assert "do not publish them" in votes
    assert '<span class="promise private">93.7%</span>' in votes
    assert "98.6%" in votes


def test_what_is_published_has_none_of_it() -> None:
    """Tables for papers and terminals hold formal figures alone."""
    comparison = a_comparison()
    for text in (to_latex(comparison), comparison_text(comparison, width=200)):
        for private in ("0.587", "0.588", "93.7", "0.31"):
            assert private not in text, private


def test_a_table_of_numbers_names_it_private() -> None:
    (line,) = records(a_comparison())
    assert line["exact_private_epsilon[public/example/replace_one]"] == 0.58719
    assert [name for name, value in line.items() if value == 0.58719] == [
        "exact_private_epsilon[public/example/replace_one]"
    ]


def test_files_give_it_back_and_older_ones_have_none(tmp_path: Path) -> None:
    comparison = a_comparison(a_row(), examples.sgd(0))
    files.save(comparison, tmp_path / "run")
    assert files.load(tmp_path / "run").rows == comparison.rows
    text = (tmp_path / "run" / "comparison.json").read_text()
    assert '"statement.exact"' in text
    assert '"history.votes"' in text
    # A run without votes has neither: its file is that of earlier versions.
    assert text.count('"top_shares"') == text.count('"method": "quadrature"') == 1
