"""The grid of privacy losses: whatever the noise, it fits into memory."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from privtrain.accounting.grid import rough_epsilon
from privtrain.accounting.library import Kind, make

ROOT = Path(__file__).parent.parent.parent


EXTREME = """
    import resource

    from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE
    from privtrain.accounting.epsilon import epsilon
    from privtrain.accounting.event import gaussian_event, poisson_sampled, repeated

    resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for noise in (0.01, 0.1, 0.3, 1.0, 1000.0, 1e6):
        for count in (1, 400, 100_000) if noise >= 0.1 else (1, 400):
            step = poisson_sampled(0.05, gaussian_event(noise))
            for relation in (ADD_REMOVE, REPLACE_ONE):
                assert 0 <= epsilon(repeated(step, count), 1e-5, relation=relation) < 1e12
            epsilon(repeated(gaussian_event(max(noise, 0.1)), count), 1e-5)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 2**30, grown
"""


@pytest.mark.slow
def test_extreme_noise_stays_within_a_gigabyte() -> None:
    script = textwrap.dedent(EXTREME)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


def test_a_mixture_has_a_probability_for_each_sensitivity() -> None:
    assert 0 < rough_epsilon(make(Kind.GAUSSIAN_MIXTURE, 2.0, (0.0, 1.0), (0.9, 0.1)), 1e-5) < 10
    ragged = make(Kind.GAUSSIAN_MIXTURE, 2.0, (0.0, 1.0, 100.0), (0.9, 0.1))
    with pytest.raises(ValueError, match="shorter"):
        rough_epsilon(ragged, 1e-5)
