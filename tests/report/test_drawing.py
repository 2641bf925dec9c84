import subprocess
import sys

import pytest

from privtrain.report import drawing


def test_more_labels_than_colours_differ_by_dashes() -> None:
    styles = drawing.styles(f"label {index}" for index in range(20))
    assert len({(style.colour, style.dash) for style in styles.values()}) == 20


@pytest.mark.slow
def test_drawing_loads_late_and_changes_no_global_state() -> None:
    script = (
        "import sys; from tests.report import examples; import privtrain.report.files;"
        "assert not {'matplotlib', 'jinja2', 'rich'} & set(sys.modules);"
        "import matplotlib; before = dict(matplotlib.rcParams);"
        "from privtrain.report import figures; figures.cost_bars(examples.hostile());"
        "assert dict(matplotlib.rcParams) == before;"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
