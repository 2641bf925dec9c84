"""The pages: their examples run, their links resolve, and they build without a warning."""

import math
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

import privtrain as pt
from tests.docs.pages import CHECKOUT, DOCS, examples, run

PAGES = sorted(
    page
    for page in (
        *(
            DOCS / name
            for name in (
                "index.md",
                "concepts.md",
                "threat_model.md",
                "sharp_edges.md",
                "attacks.md",
                "metrics.md",
                "models.md",
                "privacy_accounting.md",
            )
        ),
        *(DOCS / "trainers" / f"{name}.md" for name in ("sgd", "dp_sgd", "fedavg", "pate")),
        *(DOCS / "decisions").glob("*.md"),
    )
)
WITH_EXAMPLES = [page for page in PAGES if examples(page)]
ALL = sorted({*DOCS.rglob("*.md"), CHECKOUT / "CONTRIBUTING.md", CHECKOUT / "README.md"})
MARKS = {"", "not run"}
SLOW = {"attacks.md", "dp_sgd.md", "index.md", "concepts.md", "fedavg.md", "privacy_accounting.md"}


def name_of(page: Path) -> str:
    return str(page.relative_to(CHECKOUT))


def test_the_pages_with_examples_are_found() -> None:
    names = {name_of(page) for page in WITH_EXAMPLES}
    assert names >= {"docs/index.md", "docs/concepts.md", "docs/sharp_edges.md"}
    assert names >= {f"docs/trainers/{name}.md" for name in ("sgd", "dp_sgd", "fedavg", "pate")}


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=name_of)
def test_marks_are_known(page: Path) -> None:
    assert {block.mark for block in examples(page)} <= MARKS


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if page.name in SLOW else [])
        for page in WITH_EXAMPLES
    ],
    ids=name_of,
)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(page, [block for block in examples(page) if block.mark == ""], tmp_path)


# Figures that the pages print


def test_concepts_prints_the_golden_values(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = [b for b in examples(DOCS / "concepts.md") if "SPLIT" in b.code]
    exec(compile(block.code, "concepts.md", "exec"), {})
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    found = {(row[0], row[1]): row[2] for row in rows}
    text = (DOCS / "concepts.md").read_text()
    expected = {
        ("AT_AGGREGATOR", "public"): "4.377",
        ("SPLIT(honest_survivors=100)", "public"): "4.377",
        ("SPLIT(honest_survivors=100)", "participant"): "4.403",
        ("AT_PARTY", "public"): "0.341",
        ("AT_PARTY", "aggregator"): "9.997",
    }
    for place, value in expected.items():
        assert found[place] == value, place
        assert value in text
    assert found["AT_PARTY", "participant"] in ("0.342", "0.343")
    assert math.isinf(float(found["AT_AGGREGATOR", "aggregator"]))
    assert round(float(found["SPLIT(honest_survivors=100)", "aggregator"]), 1) == 284.4


def test_sharp_edges_states_what_counting_rows_does(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = [b for b in examples(DOCS / "sharp_edges.md") if "public_rows" in b.code]
    exec(compile(block.code, "sharp_edges.md", "exec"), {})
    stated, counted = capsys.readouterr().out.splitlines()
    assert stated.startswith("add_remove")
    assert "is public" not in stated
    assert counted.startswith("zero_out")
    assert "is public" in counted


@pytest.mark.parametrize(
    ("page", "trainer"),
    [
        ("sgd", pt.SGD()),
        ("dp_sgd", pt.DPSGD()),
        ("fedavg", pt.FedAvg()),
        ("pate", pt.PATE()),
    ],
)
def test_every_setting_of_a_trainer_stands_on_its_page(page: str, trainer: object) -> None:
    rows = "\n".join(
        line for line in (DOCS / "trainers" / f"{page}.md").read_text().splitlines() if "|" in line
    )
    names = getattr(trainer, "__dataclass_fields__", {})
    settings = [name for name, field in names.items() if field._field_type.name == "_FIELD"]
    assert settings
    assert [name for name in settings if f"`{name}`" not in rows] == []


# Links and the build


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", heading.lower()) for heading in headings]
    return {re.sub(r"[\s]+", "-", heading.strip()) for heading in plain}


def broken_links(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        there = page if not path else (page.parent / path).resolve()
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_links_resolve(page: Path) -> None:
    assert broken_links(page) == []


def test_broken_links_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One\n[a](page.md#one) [b](page.md#two) [c](missing.md) [d](https://x.org)")
    assert broken_links(page) == ["page.md#two", "missing.md"]


def test_the_picture_is_a_picture() -> None:
    root = ElementTree.parse(DOCS / "transcript.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{space}svg"
    said = " ".join(text.text or "" for text in root.iter(f"{space}text"))
    for word in ("bound", "aggregate", "noise", "finish", "participant", "aggregator", "public"):
        assert word in said


@pytest.mark.slow
def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "index.html").exists()
    assert (tmp_path / "transcript.svg").exists()
