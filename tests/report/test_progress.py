import pytest

from privtrain.report.progress import progress_bar, silent


def test_nothing_is_shown_where_the_output_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress_bar("training") as report:
        assert report is silent
        report(1, 2)
    assert capsys.readouterr() == ("", "")


def test_a_shown_bar_is_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("training", shown=True) as report:
        report(1, 2)
        report(2, 2)
    written = capsys.readouterr()
    assert written.out == ""
