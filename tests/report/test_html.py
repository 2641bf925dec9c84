import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from privtrain.core.result import Comparison, Failure, Row
from privtrain.report import figures
from privtrain.report.html import comparison_fragment, comparison_html
from tests.report import examples
from tests.report.printed import needs_browser, print_to_pdf, sheets

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """Collects tags, text and links, and checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(text: str) -> Page:
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    page.text = " ".join(page.text.split())
    return page


@pytest.fixture(scope="module")
def text() -> str:
    return comparison_html(examples.realistic())


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return parsed(text)


def test_the_page_asks_the_network_for_nothing(text: str, page: Page) -> None:
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    for name, value in page.attributes:
        if name in {"href", "src", "xlink:href", "action"}:
            assert (value or "").startswith("#"), (name, value)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_the_page_is_small(text: str) -> None:
    assert len(text.encode()) < 250_000


def test_links_inside_the_page_lead_somewhere(page: Page) -> None:
    ids = {value for name, value in page.attributes if name == "id"}
    links = {value[1:] for name, value in page.attributes if name.endswith("href") and value}
    assert links <= ids
    assert "promises" in links


def test_all_sections_are_there(page: Page) -> None:
    assert page.tags.count("svg") == 6
    for words in (
        "36 runs of 6 trainers, 4 failed",
        "asked 1, spent 1.31",
        "coalition of 6 parties",
        "every teacher's vote",
        "not evidence of safety",
        "data-dependent: one-sided, itself private",
        "Unprotected.",
        "PartyLostError: computing-1 did not answer within 60 s",
        "BudgetExceededError: not one query fits",
        "the budget was used up after 380 releases",
        "n/r",
        "versions · torch",
        "2.13.0",
        "9f2c9f2c",
        "FedAvg(rounds=30, sampling=FixedSize(10))",
    ):
        assert words in page.text, words


def test_figures_of_attacks_stand_under_the_unprotected_heading(page: Page) -> None:
    before, after = page.text.split("What attacks found")
    assert "Attack AUC unprotected" in before.replace("AUCunprotected", "AUC unprotected")
    assert after.lstrip().startswith("Unprotected. These figures are exact functions of members")
    assert "Guarantees rest on" in page.text and "if the sample is secret" in page.text


def test_names_cannot_break_out() -> None:
    for text in (comparison_html(examples.hostile()), comparison_fragment(examples.hostile())):
        hostile = parsed(text)
        assert "script" not in hostile.tags
        assert "<script>alert(1)</script>" in hostile.text
        assert not any(name.startswith("on") for name, _ in hostile.attributes)


def test_a_comparison_in_which_everything_failed_has_a_page() -> None:
    row = Row(trainer="sgd", label="pooled", seed=0, error="DataError: no rows")
    text = parsed(comparison_html(Comparison(rows=(row,), card={}))).text
    assert "1 run of 1 trainer, 1 failed" in text
    assert "DataError: no rows" in text
    assert "No attack was run." in text


@pytest.mark.slow
def test_simulated_entropy_is_said_once_where_it_holds_for_all() -> None:
    alone = Comparison(rows=(examples.sgd(0), examples.fedavg(0)), card={})
    assert parsed(comparison_html(alone)).text.count("simulated entropy") == 1
    mixed = Comparison(rows=(examples.sgd(0), examples.mpc_sgd(0)), card={})
    found = parsed(comparison_html(mixed)).text
    # The results and the promises name each run.
    assert found.count("sgd · simulated entropy") == 3
    assert "mpc_sgd · simulated entropy" not in found
    assert "All noise, shares and keys" not in found


def test_the_fragment_is_one_element_without_pictures() -> None:
    found = parsed(comparison_fragment(examples.realistic()))
    assert found.tags[0] == "div"
    assert "svg" not in found.tags
    assert "html" not in found.tags
    assert "95.1–99.1" in found.text


def test_a_delta_is_not_cut_at_its_hyphen(text: str) -> None:
    assert '<span class="v">1e-5</span>' in text


def test_a_picture_that_cannot_be_drawn_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(comparison: Comparison) -> str:
        raise ValueError("no <axis>")

    monkeypatch.setattr(figures, "cost_bars", broken)
    page = comparison_html(examples.realistic())
    assert "This picture could not be drawn: ValueError: no &lt;axis&gt;" in page
    assert '<h2 id="attacks">' in page and page.count("<svg") >= 3
    parsed(page)


def test_failed_parts_close_their_tags() -> None:
    failure = Failure(error="KeyError: 'x'", traceback="in f")
    failed = replace(examples.leakage(0.5), failure=failure, metrics={}, intervals={})
    partly = replace(examples.leakage(0.5), attack="other", failure=failure)
    for leakages in ((failed,), (failed, partly), (partly,)):
        row = replace(examples.sgd(0), leakage=leakages, accuracy=None, accuracy_failure=failure)
        page = comparison_html(Comparison(rows=(row,), card={}))
        assert parsed(page).text.count("KeyError: 'x'") >= 3
        assert "No attack was run" not in page


def with_an_audit(row: Row) -> Row:
    metrics = {"epsilon_lower_bound": 0.4711, "ceiling": 3.487, "confidence": 0.95, "delta": 1e-5}
    more = ("correct", "guesses", "f_dp_p_value", "f_dp_rejected", "gaussian_family_epsilon")
    audit = replace(
        examples.leakage(0.5),
        attack="one-run audit",
        metrics={**dict.fromkeys(more, 0.5), **metrics},
        intervals={},
    )
    return row if row.error else replace(row, leakage=(*row.leakage, audit))


@pytest.mark.slow
@needs_browser
def test_a_printed_report_loses_nothing(tmp_path: Path) -> None:
    made = examples.realistic()
    made = replace(made, rows=tuple(map(with_an_audit, made.rows)))
    (tmp_path / "report.html").write_text(comparison_html(made), encoding="utf-8")
    found = sheets(print_to_pdf(tmp_path / "report.html", tmp_path / "report.pdf"))
    whole = " ".join(found)
    # No column is cut off: the last one of each wide table.
    assert "Time CPU time Peak memory Seeds" in found[0]
    promises = whole[whole.index("What is promised to whom") :]
    assert "public participant aggregator coalition" in promises
    assert "coalition of 6 parties" in promises
    assert "Confidence Delta" in whole
    # What is folded away on a screen: every guarantee, all runs, the study.
    assert "Releases Rests on" in whole and "(Abadi et al. 2016)" in whole
    assert whole.count("per client, replace-one") >= 3 + 3
    assert "36 runs, one line each" in whole and "The study that repeats" in whole
    all_runs = whole[whole.index("36 runs, one line each") :]
    assert all_runs.count("FedAvg, local DP per client") == 9
    # Headings stand on the sheet of what they are about.
    for heading, picture in (
        ("ε at every δ", "formal ε to the public"),
        ("Trade-off", "false positive rate"),
        ("What it cost", "peak memory"),
        ("ε over rounds", "round, step or query"),
        ("Learning curves", "fraction of the run"),
        ("All runs", "Remarks"),
    ):
        # Behind the table of contents, which is not printed.
        sheet = next(sheet for sheet in found if heading in sheet)
        assert picture in sheet[sheet.index(heading) :], heading


@pytest.mark.parametrize("stated", [False, True])
def test_the_caption_says_what_dashed_lines_promise(stated: bool) -> None:
    made = examples.realistic()
    if stated:
        made = replace(made, rows=tuple(map(with_a_stated_epsilon, made.rows)))
    said = " ".join(parsed(comparison_html(made)).text.split())
    assert "“no ε” promises the public nothing" in said
    assert ("“ε stated by the user” rests on the user's word" in said) is stated


def with_a_stated_epsilon(row: Row) -> Row:
    """A row whose finite guarantees rest on somebody's word."""
    if row.statement is None:
        return row
    told = tuple(replace(each, stated=True) for each in row.statement.guarantees)
    return replace(row, statement=replace(row.statement, guarantees=told))
