import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from privtrain.core.result import Comparison
from privtrain.report.latex import escape, to_latex
from tests.report import examples


def test_latex_is_booktabs_with_a_line_for_each_group() -> None:
    text = to_latex(examples.realistic())
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert text.count(rule) == 2
    results, promises = text.split(r"\end{table}")[:2]
    assert results.count("\\\\\n") == 13
    assert promises.count("\\\\\n") == 12
    assert r"MPC & -- & inf & 95.3\% [92.9--97.1] & $-$2.1" in results
    assert r"DP-SGD & 1 & 1.31 (a) & 87.3\% [84.5--89.6]" in results
    assert "(a) per example, add-remove, $\\delta$ = 1e-5" in results
    assert "(c)" not in results  # owed to the aggregator alone
    assert "PATE & 1 & -- & failed" in results
    assert "(a) per example, add-remove, $\\delta$ = 1e-5" in promises
    assert "client & 1 & 0.99 (b) & 0.99 (b) & 22 (c) & 1.23 (b)" in promises
    assert "PATE & 3 & 3 (d) & -- & inf & --" in promises


def test_latex_escapes_names() -> None:
    assert escape(r"50% \x_{1} $a$ & #1 ~ ^") == (
        r"50\% \textbackslash{}x\_\{1\} $\$$a$\$$ \& \#1 \textasciitilde{} \textasciicircum{}"
    )
    text = to_latex(examples.hostile())
    assert r"\input{x}" not in text
    assert text.count("{") == text.count("}")
    columns = text.split(r"\midrule")[1].split("\n")[1]
    assert columns.replace(r"\&", "").count("&") == 10


def test_caveats_and_what_guarantees_rest_on_stand_below_the_tables() -> None:
    text = to_latex(examples.realistic())
    rest = text.split(r"\end{table}")[-1]
    assert r"\textbf{Guarantees rest on}" in rest and r"\textbf{Caveats}" in rest
    assert "float noise: research use" in rest
    assert "Gaussian mechanism, Poisson sampling (Abadi et al. 2016)" in rest
    assert "attack AUC (unprotected)" in text
    assert "Accuracy and AUC are covered by no guarantee." in text


def test_every_label_becomes_ascii() -> None:
    assert escape("Zoë, Łódź, naïve") == r"Zo\"{e}, \L{}\'{o}d\'{z}, na\"{i}ve"
    assert escape("μ ≤ 5 → “ok”") == r"$\mu$ $\le$ 5 $\to$ ``ok''"
    assert escape("学校 🏥\x07") == r"U+5B66U+6821 U+1F3E5 "
    assert to_latex(examples.hostile()).isascii()


# Where texlive-latex-base stands alone, booktabs is not there: its rules are drawn as lines.
DOCUMENT = r"""\documentclass{article}
\IfFileExists{booktabs.sty}{\usepackage{booktabs}}{
  \let\toprule\hline \let\midrule\hline \let\bottomrule\hline}
\begin{document}
\input{table.tex}
\end{document}
"""


def labelled(label: str) -> Comparison:
    return Comparison(rows=(replace(examples.dp_sgd(0, 3.0), label=label),), card={})


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("pdflatex") is None,
    reason="pdflatex is missing (apt-get install texlive-latex-base): no table was compiled",
)
@pytest.mark.parametrize(
    "comparison",
    [
        examples.realistic(),
        examples.hostile(),
        labelled("[first] of all"),
        labelled("*"),
        labelled("Zoë, μ = 5, 学校 🏥 “quoted” `ticked` \x07"),
        labelled("long " * 60),
    ],
    ids=["realistic", "hostile", "bracket", "star", "letters", "long"],
)
def test_the_tables_compile(comparison: Comparison, tmp_path: Path) -> None:
    (tmp_path / "table.tex").write_text(to_latex(comparison))
    (tmp_path / "paper.tex").write_text(DOCUMENT)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 5_000
