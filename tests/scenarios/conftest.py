"""Where a scenario finds what lies beside it, as a script does."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "scenarios"))
