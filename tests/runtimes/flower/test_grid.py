"""Flower's Grid in this process and Flower's simulation on Ray."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from privtrain.core.errors import PartyLostError, ProtocolError, UnsupportedError
from privtrain.core.runtime import Party, Payload, Reply, StarRuntime
from privtrain.runtimes.flower.grid import FlowerGrid, FlowerRay
from privtrain.runtimes.in_process import InProcess
from tests.contracts.star_runtime import (
    CHECKS,
    PARTIES,
    Echo,
    Fail,
    Mail,
    Mean,
    Tell,
    a_setting,
    all_bits,
    bits,
    reply_bits,
    rows_of,
    three_rounds,
)

pytest.importorskip("flwr", reason='Flower is an extra: pip install "privtrain[flower]"')


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_grid_keeps_the_promises_of_a_star(check: Callable[[StarRuntime], None]) -> None:
    check(FlowerGrid())


def test_a_star_leaves_flowers_identity_as_it_was() -> None:
    from flwr.supercore.task_identity import TaskIdentity

    before = TaskIdentity._run_id
    with FlowerGrid().open(a_setting()) as star:
        star.map(Echo(), {PARTIES[0]: {}}, round=0)
        assert TaskIdentity._run_id == before


def python(code: str, **variables: str) -> str:
    """What a fresh interpreter prints; a warning is an error there."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_flower_is_loaded_on_use_without_a_warning_and_writes_nothing(tmp_path: Path) -> None:
    loaded = "import sys, privtrain, privtrain.core.runtime; print('flwr' in sys.modules)"
    assert python(loaded).strip() == "False"
    code = (
        "from privtrain.runtimes.flower.grid import FlowerGrid\n"
        "from tests.contracts.star_runtime import PARTIES, Echo, a_setting\n"
        "with FlowerGrid().open(a_setting()) as star:\n"
        "    star.map(Echo(), {name: {} for name in PARTIES}, round=0)\n"
    )
    assert python(code, HOME=str(tmp_path)) == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong", [{"cpus_per_party": 0.0}, {"gpus_per_party": -1.0}, {"timeout_seconds": 0.0}]
)
def test_settings_of_ray_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FlowerRay(**wrong)


def test_without_ray_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="pip install"), FlowerRay().open(a_setting()):
        pass


def descendants() -> set[int]:
    """Processes that this one started, and those that they started."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended while we were looking
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found, wave = set[int](), {os.getpid()}
    while wave:
        wave = {process for process, parent in parents.items() if parent in wave} - found
        found |= wave
    return found


@pytest.mark.slow
def test_ray_gives_the_same_bits_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    before, variables = descendants(), dict(os.environ)
    found, states, entries = {}, {}, {}
    for runtime in (InProcess(), FlowerGrid(), FlowerRay()):
        peaks: list[int] = []
        setting = replace(a_setting(), report_memory=peaks.append, others=("key-holder",))
        with runtime.open(setting) as star:
            replies = three_rounds(star.map)
            states[runtime.name] = all_bits(star.states())
            star.restore(star.states())
            replies += three_rounds(star.map, parties=PARTIES[::-2], start=3)
            found[runtime.name] = [reply_bits(reply) for reply in replies]
            assert bool(peaks) == isinstance(runtime, FlowerRay)
            entries[runtime.name] = sorted(setting.transcript.entries, key=repr)
            if isinstance(runtime, FlowerRay):
                assert descendants() - before
                star.map(Hold(320_000_000), {PARTIES[0]: {}}, round=6)
                without, *_, with_it = peaks
                assert with_it - without > 250_000_000, "the worker holds it, and not this process"
                check_exchanges_of_ray(star.map)
                check_errors_of_ray(star.map)
    assert found["flower-ray"] == found["flower-grid"] == found["in-process"]
    assert states["flower-ray"] == states["flower-grid"] == states["in-process"]
    assert entries["flower-ray"] == entries["flower-grid"] == entries["in-process"]
    assert descendants() == before
    assert dict(os.environ) == variables
    assert list(tmp_path.iterdir()) == []


def check_exchanges_of_ray(star_map: Callable[..., dict[str, Reply]]) -> None:
    replies = star_map(Tell(), {name: {} for name in PARTIES}, round=6)
    seen = replies[PARTIES[2]].seen
    assert seen.numbers["loss"] == 2 / 3
    assert seen.used is not None and seen.used.tolist() == [True, False, True]
    star_map(Mail(("key-holder", PARTIES[0])), {name: {} for name in PARTIES}, round=6)
    asked: dict[str, Payload] = {"key-holder": {}, PARTIES[0]: {}}
    got = star_map(Mail(()), asked, round=6)
    assert set(got["key-holder"].message) == {f"letter from {name}" for name in PARTIES}
    assert set(got[PARTIES[0]].message) == {f"letter from {name}" for name in PARTIES[1:]}
    everybody: dict[str, Payload] = {name: {} for name in PARTIES}
    gone = Fail(PARTIES[1], PartyLostError("the line is dead"))
    assert tuple(star_map(gone, everybody, round=7, at_least=2)) == (PARTIES[0], PARTIES[2])
    with pytest.raises(PartyLostError, match=rf"2 of 3 .* at least 3 have to: {PARTIES[1]}"):
        star_map(gone, everybody, round=7, at_least=3)
    with pytest.raises(PartyLostError, match="ZeroDivisionError"):
        star_map(Fail(PARTIES[1], ZeroDivisionError("no rows")), everybody, round=7, at_least=1)


def check_errors_of_ray(star_map: Callable[..., dict[str, Reply]]) -> None:
    everybody = {name: {} for name in PARTIES}
    with pytest.raises(PartyLostError, match=r"ZeroDivisionError\('no rows'\)") as caught:
        star_map(Fail(PARTIES[1], ZeroDivisionError("no rows")), everybody, round=7)
    assert caught.value.party == PARTIES[1]
    with pytest.raises(ValueError, match="stranger"):
        star_map(Echo(), {"stranger": {}}, round=8)
    replies = star_map(Mean(), everybody, round=9)  # a failed round does not end the star
    assert bits(replies[PARTIES[2]].message["mean"]) == bits(rows_of(PARTIES[2]).inputs.mean(dim=0))
    with pytest.raises(PartyLostError) as caught:
        star_map(Die(PARTIES[0]), {PARTIES[0]: {}}, round=10)
    assert caught.value.party == PARTIES[0]
    # Who dies is lost, and no failure of its own code.
    assert not caught.value.failed
    assert star_map(Die(PARTIES[0]), {PARTIES[0]: {}}, round=11, at_least=0) == {}


@dataclass(frozen=True)
class Hold:
    """Holds so many bytes while it works."""

    size: int

    def __call__(self, payload: Payload, party: Party) -> Reply:
        return Reply({"sum": torch.ones(self.size, dtype=torch.uint8).max()})


@dataclass(frozen=True)
class Die:
    """Ends the worker without a word."""

    at: str

    def __call__(self, payload: Payload, party: Party) -> Reply:
        if party.name == self.at:
            os._exit(1)
        return Reply(payload)


@pytest.mark.slow
def test_a_simulation_that_cannot_start_raises_instead_of_waiting() -> None:
    too_many = FlowerRay(cpus_per_party=10_000.0)
    with too_many.open(a_setting()) as star, pytest.raises(ProtocolError, match="simulation"):
        star.map(Echo(), {PARTIES[0]: {}}, round=0)


@dataclass(frozen=True)
class Hang:
    """Never replies."""

    def __call__(self, payload: Payload, party: Party) -> Reply:
        time.sleep(3600)
        return Reply(payload)


@pytest.mark.slow
@pytest.mark.parametrize("timeout_seconds", [0.1, 20.0], ids=["while-starting", "in-a-step"])
def test_a_party_that_does_not_reply_in_time_is_named_and_ended(timeout_seconds: float) -> None:
    before = descendants()
    with FlowerRay(timeout_seconds=timeout_seconds).open(a_setting()) as star:
        with pytest.raises(PartyLostError, match="did not reply in round 5") as caught:
            star.map(Hang(), {PARTIES[1]: {}}, round=5)
        assert caught.value.party == PARTIES[1]
    assert descendants() == before
