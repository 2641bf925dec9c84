from privtrain.report.latex import escape, to_latex
from tests.report import examples


def test_latex_is_booktabs_with_a_line_for_each_group() -> None:
    text = to_latex(examples.realistic())
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert text.count(rule) == 2
    results, promises = text.split(r"\end{table}")[:2]
    assert results.count("\\\\\n") == 13
    assert promises.count("\\\\\n") == 12
    assert r"MPC & -- & 95.3\% [92.9--97.1] & $-$2.1" in results
    assert "PATE & 1 & failed" in results
    assert "(a) per example, add-remove, $\\delta$ = 1e-5" in promises
    assert "client & 1 & 0.99 (b) & 0.99 (b) & 22 (c) & 1.23 (b)" in promises
    assert "PATE & 3 & 3 (d) & -- & inf & --" in promises


def test_latex_escapes_names() -> None:
    assert escape(r"50% \x_{1} $a$ & #1 ~ ^") == (
        r"50\% \textbackslash{}x\_\{1\} \$a\$ \& \#1 \textasciitilde{} \textasciicircum{}"
    )
    text = to_latex(examples.hostile())
    assert r"\input{x}" not in text
    assert text.count("{") == text.count("}")
    columns = text.split(r"\midrule")[1].split("\n")[1]
    assert columns.replace(r"\&", "").count("&") == 8


def test_caveats_and_what_guarantees_rest_on_stand_below_the_tables() -> None:
    text = to_latex(examples.realistic())
    rest = text.split(r"\end{table}")[-1]
    assert r"\textbf{Guarantees rest on}" in rest and r"\textbf{Caveats}" in rest
    assert "float noise: research use" in rest
    assert "Gaussian mechanism, Poisson sampling (Abadi et al. 2016)" in rest
    assert "attack AUC (unprotected)" in text
    assert "Accuracy and AUC are covered by no guarantee." in text
