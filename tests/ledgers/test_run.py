import copy
import errno
import json
import math
import os
import pickle
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privtrain.accounting.event import composed, gaussian_event, non_private_event, poisson_sampled
from privtrain.accounting.guarantees import guarantees
from privtrain.core.errors import BudgetExceededError, PrivacyError, UnsoundReleaseError
from privtrain.core.observers import AGGREGATOR, CURATOR, PUBLIC, QUERIER, coalition
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, ZERO_OUT, Budget, Unit
from privtrain.core.trainer import RELEASE, Charge, PrivacyPlan
from privtrain.ledgers.run import (
    JournalLedger,
    capacity,
    check_one_plan,
    digest_of,
    epsilon_of,
)
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.mechanisms.mechanism import Exact
from privtrain.mechanisms.votes import GNMax
from privtrain.release.door import Release
from tests.contracts.aggregation import a_run
from tests.threads import PATIENCE, meeting, outcomes


def a_plan(count: int = 10, noise: float = 2.0) -> PrivacyPlan:
    return PrivacyPlan(
        observer=PUBLIC,
        unit=Unit.CLIENT,
        relation=ZERO_OUT,
        charges={RELEASE: Charge(gaussian_event(noise), count)},
    )


def a_ledger(
    folder: Path, *, count: int = 10, block: int = 1, noise: float = 2.0, delta: float = 1e-5
) -> JournalLedger:
    journal = folder / "run" / "journal.jsonl"
    return JournalLedger((a_plan(count, noise),), journal=journal, block=block, delta=delta)


def journal_of(folder: Path) -> Path:
    return folder / "run" / "journal.jsonl"


# --------------------------------------------------------------------- spending before the value


def test_a_release_that_was_not_paid_for_is_refused() -> None:
    ledger = JournalLedger((a_plan(),))
    with pytest.raises(BudgetExceededError, match="not paid for"):
        ledger.use()
    assert ledger.spend(2)
    ledger.use()
    ledger.use()
    with pytest.raises(BudgetExceededError, match=r"2 of 2 paid.*run\.spend"):
        ledger.use()
    assert ledger.spend(1)
    with pytest.raises(BudgetExceededError):
        ledger.use(2)
    ledger.use(1)


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_nothing_is_paid_for_or_used_by_other_than_counts(count: int) -> None:
    ledger = JournalLedger((a_plan(),))
    assert ledger.spend(3)
    with pytest.raises(ValueError, match="count="):
        ledger.spend(count)
    # Zero is a further part of a release, and none has begun here.
    with pytest.raises(BudgetExceededError if count == 0 else ValueError):
        ledger.use(count)
    assert ledger.spent == 3


def test_what_does_not_fit_is_not_spent_at_all() -> None:
    ledger = JournalLedger((a_plan(count=5),))
    assert not ledger.spend(6)
    assert ledger.spent == 0
    assert ledger.spend(5)
    assert not ledger.spend()
    assert ledger.spent == ledger.limit == 5


def test_the_journal_is_written_and_synced_before_the_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    true_sync = os.fsync

    def recorded(descriptor: int) -> None:
        true_sync(descriptor)
        journal = journal_of(tmp_path)
        synced.append(journal.read_text() if journal.exists() else "")

    monkeypatch.setattr(os, "fsync", recorded)
    ledger = a_ledger(tmp_path)
    for number in range(1, 4):
        before = len(synced)
        assert ledger.spend()
        assert len(synced) > before
        assert json.loads(synced[-1].splitlines()[-1]) == {"spent_up_to": number}


def test_a_block_is_synced_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = a_ledger(tmp_path, block=4)
    assert ledger.spend()

    def refuse(descriptor: int) -> None:
        raise AssertionError("a reserved release needs no sync")

    monkeypatch.setattr(os, "fsync", refuse)
    assert ledger.spend()
    assert ledger.spend(2)
    with pytest.raises(AssertionError):
        ledger.spend()


# ------------------------------------------------------------------------ crashes and resumed runs


def test_what_was_spent_stays_spent(tmp_path: Path) -> None:
    first = a_ledger(tmp_path)
    assert first.spend(3)
    resumed = a_ledger(tmp_path)
    assert resumed.spent == 3
    with pytest.raises(BudgetExceededError):
        resumed.use()  # what the crashed run paid for is not there to be used again
    assert resumed.spend(7)
    assert not resumed.spend()
    assert a_ledger(tmp_path).spent == 10


def test_an_unfinished_block_stays_spent(tmp_path: Path) -> None:
    first = a_ledger(tmp_path, block=4)
    assert first.spend()
    assert first.spent == 1
    assert a_ledger(tmp_path, block=4).spent == 4


def test_a_block_ends_where_the_plan_does(tmp_path: Path) -> None:
    assert a_ledger(tmp_path, block=100).spend()
    assert a_ledger(tmp_path, block=100).spent == 10


def test_closing_gives_back_what_a_block_never_used(tmp_path: Path) -> None:
    first = a_ledger(tmp_path, block=8)
    assert first.spend(2)
    first.close()
    assert first.spent == 2
    resumed = a_ledger(tmp_path, block=8)
    assert resumed.spent == 2
    assert resumed.spend(8)
    assert not resumed.spend()


def test_closing_gives_nothing_back_of_an_earlier_crash(tmp_path: Path) -> None:
    assert a_ledger(tmp_path, block=4).spend()  # crashed: four stay spent
    resumed = a_ledger(tmp_path, block=4)
    assert resumed.spend()
    resumed.close()
    assert a_ledger(tmp_path, block=4).spent == 5


def test_closing_twice_or_unused_writes_nothing(tmp_path: Path) -> None:
    ledger = a_ledger(tmp_path)
    ledger.close()
    assert not journal_of(tmp_path).exists()
    assert ledger.spend()
    before = journal_of(tmp_path).read_bytes()
    ledger.close()
    ledger.close()
    assert journal_of(tmp_path).read_bytes() == before


@settings(deadline=None, max_examples=40)
@given(
    spends=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    block=st.integers(1, 5),
    kept=st.floats(0, 1),
)
def test_a_journal_torn_anywhere_never_forgets_what_was_synced(
    tmp_path_factory: pytest.TempPathFactory, spends: list[int], block: int, kept: float
) -> None:
    """The last write is cut off at any byte: it had not been synced, so nothing was released."""
    folder = tmp_path_factory.mktemp("torn")
    ledger = a_ledger(folder, count=20, block=block)
    journal, before, paid = journal_of(folder), b"", 0
    for count in spends:
        before = journal.read_bytes() if journal.exists() else b""
        paid = ledger.spent
        assert ledger.spend(count)
    whole = journal.read_bytes()
    torn = before + whole[len(before) :][: int(kept * (len(whole) - len(before)))]
    journal.write_bytes(torn)
    resumed = a_ledger(folder, count=20, block=block)
    assert resumed.spent >= paid
    reached = resumed.spent
    assert resumed.spend()
    again = a_ledger(folder, count=20, block=1)
    assert again.spent > reached
    assert all(isinstance(line.get("plan", ""), str) for line in readable(journal))


def readable(journal: Path) -> list[dict[str, object]]:
    lines = []
    for text in journal.read_text(errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


@pytest.mark.parametrize("tail", [b'\n{"spent_up_', b"\n\x00\x00\x00", b"\n\xff\xfe", b"\n"])
def test_a_damaged_last_line_reserved_nothing(tmp_path: Path, tail: bytes) -> None:
    assert a_ledger(tmp_path).spend(3)
    with journal_of(tmp_path).open("ab") as file:
        file.write(tail)
    resumed = a_ledger(tmp_path)
    assert resumed.spent == 3
    assert resumed.spend()
    assert a_ledger(tmp_path).spent == 4


@pytest.mark.parametrize("start", [b"", b"\n", b'\n{"pl', b'\n{"plan": "'])
def test_a_crash_in_the_very_first_write_spent_nothing(tmp_path: Path, start: bytes) -> None:
    journal_of(tmp_path).parent.mkdir()
    journal_of(tmp_path).write_bytes(start)
    resumed = a_ledger(tmp_path)
    assert resumed.spent == 0
    assert resumed.spend(2)
    assert a_ledger(tmp_path).spent == 2


@pytest.mark.slow
def test_a_killed_process_leaves_its_releases_spent(tmp_path: Path) -> None:
    program = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.ledgers.test_run import a_ledger
ledger = a_ledger(Path({str(tmp_path)!r}))
assert ledger.spend(2)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=120)
    assert done.returncode == -9
    assert a_ledger(tmp_path).spent == 2


def test_two_runs_do_not_spend_one_plan_twice(tmp_path: Path) -> None:
    first, second = a_ledger(tmp_path), a_ledger(tmp_path)
    assert first.spend(4)
    with pytest.raises(PrivacyError, match=r"changed by somebody else.*one run at a time"):
        second.spend()
    assert second.spent == 0
    with pytest.raises(BudgetExceededError):
        second.use()
    assert first.spend()
    assert a_ledger(tmp_path).spent == 5


def test_a_journal_that_vanished_is_not_begun_anew(tmp_path: Path) -> None:
    ledger = a_ledger(tmp_path)
    assert ledger.spend(4)
    journal_of(tmp_path).unlink()
    with pytest.raises(PrivacyError, match="changed by somebody else"):
        ledger.spend()


# ------------------------------------------------------------------------------------- threads


class Slow(int):
    """A count that two threads add to what was used at the same moment."""

    barrier = threading.Barrier(2)

    def __radd__(self, other: int) -> int:
        with suppress(threading.BrokenBarrierError):
            self.barrier.wait(PATIENCE)
        return other + int(self)


@pytest.mark.parametrize("on_disk", [False, True])
def test_threads_do_not_pay_once_for_two_releases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_disk: bool
) -> None:
    ledger = JournalLedger((a_plan(1),), journal=journal_of(tmp_path) if on_disk else None)
    true_write = JournalLedger._write
    bound = meeting(2, lambda line: true_write(ledger, line))
    monkeypatch.setattr(JournalLedger, "_write", lambda self, line: bound(line))
    assert sorted(outcomes(2, ledger.spend)) == [False, True]
    assert ledger.spent == 1
    made = outcomes(2, lambda: ledger.use(Slow(1)))
    assert sorted(type(one).__name__ for one in made) == ["BudgetExceededError", "NoneType"]


def test_threads_of_one_ledger_all_write_their_journal(tmp_path: Path) -> None:
    ledger = a_ledger(tmp_path, count=8, block=2)
    assert sorted(outcomes(12, ledger.spend)) == [False] * 4 + [True] * 8
    ledger.close()
    assert a_ledger(tmp_path, count=8).spent == 8


def test_of_two_ledgers_of_one_journal_in_two_threads_one_is_refused(tmp_path: Path) -> None:
    ledgers = [a_ledger(tmp_path), a_ledger(tmp_path)]
    made = outcomes(2, lambda: ledgers.pop().spend(4))
    assert sorted(type(one).__name__ for one in made) == ["PrivacyError", "bool"]
    assert a_ledger(tmp_path).spent == 4


def test_a_failed_write_does_not_adopt_what_somebody_else_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = a_ledger(tmp_path), a_ledger(tmp_path)

    true_open = Path.open

    def fail(path: Path, *arguments: Any, **options: Any) -> Any:
        with monkeypatch.context() as inner:
            inner.setattr(Path, "open", true_open)
            assert second.spend(6)  # word for word what the first one would have written
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fail)
        with pytest.raises(PrivacyError, match="Input/output error"):
            first.spend(6)
    with pytest.raises(PrivacyError, match="changed by somebody else"):
        first.spend(6)
    assert first.spent == 0
    assert a_ledger(tmp_path).spent == 6


@pytest.mark.parametrize("undone", [True, False])
def test_a_first_write_that_failed_late_begins_no_second_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undone: bool
) -> None:
    ledger = a_ledger(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        if not undone:
            patch.setattr(os, "ftruncate", lambda descriptor, size: full(descriptor))
        with pytest.raises(PrivacyError, match="No space left"):
            ledger.spend()
    if undone:
        assert journal_of(tmp_path).read_text() == ""
    else:  # what is there may be another's; a ledger that reads it counts it
        with pytest.raises(PrivacyError, match="changed by somebody else"):
            ledger.spend(2)
        ledger = a_ledger(tmp_path)
        assert ledger.spent == 1
    assert ledger.spend(2)
    assert journal_of(tmp_path).read_text().count('"plan"') == 1
    assert a_ledger(tmp_path).spent == (2 if undone else 3)


def test_ledgers_are_values_with_their_lock() -> None:
    ledger = JournalLedger((a_plan(),))
    assert ledger.spend(3)
    for other in (pickle.loads(pickle.dumps(ledger)), copy.deepcopy(ledger)):
        assert other == ledger
        assert other.spend()
        assert (other.spent, ledger.spent) == (4, 3)
    assert "_lock" not in repr(ledger)


# ------------------------------------------------------------------------ entries that cannot be


@pytest.mark.parametrize(
    "line",
    [
        '{"spent_up_to": -5}',
        '{"spent_up_to": 0}',
        '{"spent_up_to": "x"}',
        '{"spent_up_to": "7"}',
        '{"spent_up_to": NaN}',
        '{"spent_up_to": Infinity}',
        '{"spent_up_to": true}',
        '{"spent_up_to": 7.0}',
        '{"spent_up_to": null}',
        '{"spent_up_to": [7]}',
        '{"spent_up_to": 5}',
        '{"spent_up_to": 11}',
        '{"spent_up_to": 7, "spent_up_to": 3}',
        '{"spent_up_to": 7, "by": "me"}',
        '{"spent": 7}',
        "{}",
        "[]",
        "7",
        '"x"',
        "null",
        '{"finished_at": 3}',
        '{"finished_at": 2}',
        '{"finished_at": 0}',
        '{"finished_at": -1}',
        '{"finished_at": 7}',
        '{"finished_at": true}',
        '{"finished_at": 4.0}',
        '{"spent_up_to": ' + "9" * 5000 + "}",
        "[" * 100_000,
        "my notes",
        "HEADER",
    ],
)
def test_an_entry_that_cannot_be_is_refused_with_file_and_line(tmp_path: Path, line: str) -> None:
    ledger = a_ledger(tmp_path, block=3)
    assert ledger.spend(3)
    assert ledger.spend()  # up to 6
    header = journal_of(tmp_path).read_text().splitlines()[1]
    line = header if line == "HEADER" else line
    whole = journal_of(tmp_path).read_text()
    for text in (f"{whole}\n{line}", f'{whole}\n{line}\n{{"spent_up_to": 9}}'):
        journal_of(tmp_path).write_text(text)
        with pytest.raises(PrivacyError, match=r"Line 5 of the privacy journal .*journal\.jsonl"):
            a_ledger(tmp_path)
        assert journal_of(tmp_path).read_text() == text


def test_a_smaller_number_is_only_what_a_finished_run_gave_back(tmp_path: Path) -> None:
    ledger = a_ledger(tmp_path, block=3)
    assert ledger.spend(3)
    assert ledger.spend(1)
    ledger.close()
    resumed = a_ledger(tmp_path, block=3)
    assert resumed.spent == 4
    assert resumed.spend(1)
    resumed.close()
    assert a_ledger(tmp_path).spent == 5
    # Twice, as where writing it failed after it stood there.
    with journal_of(tmp_path).open("a") as file:
        file.write('\n{"finished_at": 5}')
    assert a_ledger(tmp_path).spent == 5
    with journal_of(tmp_path).open("a") as file:
        file.write('\n{"finished_at": 4}')
    with pytest.raises(PrivacyError, match="after 5 of 10 planned"):
        a_ledger(tmp_path)


def test_a_journal_cut_at_every_byte_goes_on(tmp_path: Path) -> None:
    ledger = a_ledger(tmp_path, block=3)
    for _ in range(7):
        assert ledger.spend()
    whole = journal_of(tmp_path).read_bytes()
    for size in range(len(whole) + 1):
        journal_of(tmp_path).write_bytes(whole[:size])
        resumed = a_ledger(tmp_path, block=3)
        assert resumed.spent in (0, 3, 6, 9)
        before = resumed.spent
        assert resumed.spend()
        assert a_ledger(tmp_path).spent == min(before + 3, 10)


# ----------------------------------------------------------------------------- another plan


def of(event: Any) -> PrivacyPlan:
    return replace(a_plan(), charges={RELEASE: Charge(event, 10)})


def same_but(**changes: object) -> PrivacyPlan:
    return replace(a_plan(), **changes)  # type: ignore[arg-type] # one field of each kind


@pytest.mark.parametrize(
    "other",
    [
        same_but(observer=AGGREGATOR),
        same_but(unit=Unit.EXAMPLE),
        same_but(relation=REPLACE_ONE),
        same_but(charges={RELEASE: Charge(gaussian_event(2.0), 11)}),
        of(gaussian_event(2.000001)),
        of(poisson_sampled(0.5, gaussian_event(2.0))),
        of(non_private_event()),
    ],
    ids=["observer", "unit", "relation", "count", "noise", "sampling", "none"],
)
def test_a_journal_of_another_plan_is_refused(tmp_path: Path, other: PrivacyPlan) -> None:
    assert a_ledger(tmp_path).spend()
    before = journal_of(tmp_path).read_bytes()
    with pytest.raises(PrivacyError, match=r"another plan.*settings.*another folder"):
        JournalLedger((other,), journal=journal_of(tmp_path))
    assert journal_of(tmp_path).read_bytes() == before


def test_a_journal_of_another_delta_is_refused(tmp_path: Path) -> None:
    assert a_ledger(tmp_path).spend()
    with pytest.raises(PrivacyError, match="another plan"):
        a_ledger(tmp_path, delta=1e-6)


def test_curves_and_samples_of_other_noise_are_other_plans() -> None:
    def digest(release: Release) -> str:
        return digest_of(release.plans(unit=Unit.EXAMPLE, count=1, parties=3), 1e-5)

    assert digest(Release(GNMax(1.0))) != digest(Release(GNMax(100.0)))
    assert digest(Release(Gaussian(1.0, 1.0))) != digest(Release(Gaussian(1.0, 1.1)))
    events = [
        poisson_sampled(0.1, gaussian_event(1.0)),
        poisson_sampled(0.1, gaussian_event(1.1)),
        poisson_sampled(0.2, gaussian_event(1.0)),
        composed([gaussian_event(1.0), Release(GNMax(1.0)).mechanism.event(EXPOSED, ADD_REMOVE)]),
        composed([gaussian_event(1.0), Release(GNMax(2.0)).mechanism.event(EXPOSED, ADD_REMOVE)]),
    ]
    digests = {digest_of((of(event),), 1e-5) for event in events}
    assert len(digests) == len(events)


EXPOSED = Release().aggregation.exposure(PUBLIC, Release().noise_at, parties=1)


@pytest.mark.slow
def test_a_plan_has_one_digest_in_every_process() -> None:
    """The order of a set of strings follows the process's hash seed."""
    program = (
        "from privtrain.core.observers import coalition\n"
        "from privtrain.core.statement import Unit\n"
        "from privtrain.release.door import Release\n"
        "from privtrain.ledgers.run import digest_of\n"
        "names = {f'computing-{number}' for number in range(8)}\n"
        "plans = Release().plans("
        "unit=Unit.EXAMPLE, count=1, parties=1, observers=(coalition(names),))\n"
        "print(digest_of(plans, 1e-5))\n"
    )
    found = set()
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
            cwd=Path(__file__).parents[2],
            timeout=120,
        )
        found.add(done.stdout)
    assert len(found) == 1


def test_a_foreign_file_is_refused_and_kept(tmp_path: Path) -> None:
    journal_of(tmp_path).parent.mkdir()
    journal_of(tmp_path).write_text("my notes\n")
    with pytest.raises(PrivacyError):
        a_ledger(tmp_path)
    assert journal_of(tmp_path).read_text() == "my notes\n"


# ------------------------------------------------------------------------ journals without a disk


def test_a_directory_in_place_of_the_journal(tmp_path: Path) -> None:
    journal_of(tmp_path).mkdir(parents=True)
    with pytest.raises(PrivacyError, match=r"Cannot read the privacy journal .*journal\.jsonl"):
        a_ledger(tmp_path)


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    ledger = a_ledger(tmp_path)
    with pytest.raises(PrivacyError, match=r"Cannot write.*Nothing was released.*another folder"):
        ledger.spend()
    with pytest.raises(BudgetExceededError):
        ledger.use()


def test_a_full_disk_releases_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = a_ledger(tmp_path)
    assert ledger.spend()
    ledger.use()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(PrivacyError, match=r"No space left on device.*free disk space"):
            ledger.spend()
    assert ledger.spent == 1
    with pytest.raises(BudgetExceededError):
        ledger.use()
    assert ledger.spend()
    assert a_ledger(tmp_path).spent >= 2


# ------------------------------------------------------------------------------------- budgets


@pytest.mark.slow
@pytest.mark.parametrize("noise", [1.0, 3.0])
@pytest.mark.parametrize("epsilon", [2.0, 5.0, 8.0])
def test_a_budget_becomes_the_largest_count_that_fits(noise: float, epsilon: float) -> None:
    plan = a_plan(count=25, noise=noise)
    brute = max(
        (n for n in range(26) if epsilon_of(plan, {RELEASE: n}, 1e-5) <= epsilon),
        default=0,
    )
    budget = Budget(epsilon=epsilon, delta=1e-5)
    if brute == 0:
        with pytest.raises(BudgetExceededError):
            capacity((plan,), budget)
    else:
        assert capacity((plan,), budget) == {RELEASE: brute}


def test_the_strictest_plan_of_the_observer_counts() -> None:
    loose, strict = a_plan(noise=5.0), a_plan(noise=2.0)
    budget = Budget(epsilon=4.0, delta=1e-5)
    assert capacity((loose, strict), budget) == capacity((strict,), budget)
    assert capacity((strict,), budget)[RELEASE] < capacity((loose,), budget)[RELEASE]


def test_other_observers_do_not_count() -> None:
    exposed = replace(of(non_private_event()), observer=AGGREGATOR)
    assert capacity((a_plan(noise=20.0), exposed), Budget(epsilon=3.0)) == {RELEASE: 10}


def test_without_a_budget_the_plan_is_the_limit() -> None:
    assert capacity((a_plan(count=7), a_plan(count=3)), None) == {RELEASE: 7}
    assert capacity((), None) == {}


def test_not_one_release_fits() -> None:
    with pytest.raises(
        BudgetExceededError, match=r"epsilon=0\.5.*delta=1e-05.*public.*costs 1\.\d+.*calibrate"
    ):
        capacity((a_plan(noise=2.0),), Budget(epsilon=0.5))


def test_nothing_fits_where_nothing_is_noised() -> None:
    plans = Release(Exact()).plans(unit=Unit.CLIENT, count=5, parties=3)
    with pytest.raises(BudgetExceededError, match=r"costs inf.*Gaussian"):
        JournalLedger(plans, budget=Budget(epsilon=8.0))


def test_an_unknown_observer_is_named() -> None:
    for observer in (QUERIER, coalition({"client-1"})):
        with pytest.raises(ValueError, match=rf"observer={observer.name!r} to be one of public"):
            capacity((a_plan(),), Budget(epsilon=1.0, observer=observer))


def test_a_smaller_budget_on_resuming_pays_for_nothing_more(tmp_path: Path) -> None:
    assert a_ledger(tmp_path).spend(8)
    tight = JournalLedger(
        (a_plan(),),
        budget=Budget(epsilon=epsilon_of(a_plan(), {RELEASE: 4}, 1e-5)),
        journal=journal_of(tmp_path),
    )
    assert (tight.limit, tight.spent) == (4, 8)
    assert not tight.spend()


# ------------------------------------------------------------------------------ composition


@pytest.mark.parametrize("mechanism", [Gaussian(1.0, 2.0), GNMax(5.0), Exact()])
@pytest.mark.parametrize("spent", [0, 1, 6, 10])
def test_spent_is_at_most_planned_and_equal_at_the_end(
    mechanism: Gaussian | GNMax | Exact, spent: int
) -> None:
    plans = Release(mechanism).plans(unit=Unit.CLIENT, count=10, parties=4)
    for plan, made in zip(
        plans, guarantees(plans, spent={RELEASE: spent}, delta=1e-5), strict=True
    ):
        planned = epsilon_of(plan, plan.counts, 1e-5)
        assert made.epsilon <= planned
        assert made.releases == spent
        if spent == 10:
            assert made.epsilon == planned
        if spent == 0:
            assert made.epsilon == 0.0


def test_composition_never_lowers_epsilon() -> None:
    for plan in (a_plan(), of(poisson_sampled(0.1, gaussian_event(1.0)))):
        curve = [epsilon_of(plan, {RELEASE: count}, 1e-5) for count in range(12)]
        assert curve[0] == 0.0
        assert curve == sorted(curve)
        assert not any(map(math.isnan, curve))


def test_two_plans_about_one_unit_are_refused_and_two_units_are_not() -> None:
    check_one_plan(())
    check_one_plan((a_plan(), same_but(unit=Unit.EXAMPLE), same_but(observer=AGGREGATOR)))
    for twin in (a_plan(3, 5.0), same_but(relation=REPLACE_ONE)):
        with pytest.raises(UnsoundReleaseError, match=r"2 plans .* public sees of one client.*one"):
            check_one_plan((a_plan(), twin))


def test_plans_about_a_coalition_have_the_digest_that_version_0_1_wrote() -> None:
    def digest(*members: str) -> str:
        return digest_of((same_but(observer=coalition(set(members))),), 1e-5)

    # Computed by version 0.1.0.
    assert digest("a", "b") == "4151ef68928a6da92bb1bcd8efccec69"
    assert digest("a") == "12bd7d3a71a1588c19e684cc9c5507d7"
    assert digest("a", "b") != digest("a", "c")


def test_plans_about_the_curator_have_the_digest_of_earlier_versions() -> None:
    """They called it the aggregator, and journals of runs on pooled rows go on."""
    curator, aggregator, public = (
        digest_of((same_but(observer=observer),), 1e-5)
        for observer in (CURATOR, AGGREGATOR, PUBLIC)
    )
    assert curator == aggregator != public


# ------------------------------------------------------------------------------ several kinds


def of_kinds(checks: int = 10, answers: int = 4, noise: float = 20.0) -> PrivacyPlan:
    """Checks that are cheap, and answers that are not."""
    charges = {
        "check": Charge(gaussian_event(noise), checks),
        "answer": Charge(gaussian_event(noise / 5), answers),
    }
    return replace(a_plan(), charges=charges)


def test_each_kind_has_a_count_of_its_own() -> None:
    ledger = JournalLedger((of_kinds(),))
    assert (ledger.limit, ledger.limits) == (14, {"check": 10, "answer": 4})
    assert ledger.spend(10, kind="check")
    assert not ledger.spend(kind="check")
    with pytest.raises(BudgetExceededError, match=r"of kind 'answer'.*0 of 0.*kind='answer'"):
        ledger.use(kind="answer")  # what was paid for checks pays for no answer
    assert ledger.spend(3, kind="answer")
    assert not ledger.spend(2, kind="answer")
    ledger.use(3, kind="answer")
    with pytest.raises(BudgetExceededError, match="'answer'"):
        ledger.use(0 + 1, kind="answer")
    assert (ledger.spent, ledger.spent_by_kind) == (13, {"check": 10, "answer": 3})


@pytest.mark.parametrize("kind", [RELEASE, "checks", ""])
def test_a_kind_that_was_not_planned_is_not_paid_for(kind: str) -> None:
    ledger = JournalLedger((of_kinds(),))
    with pytest.raises(ValueError, match=rf"kind={kind!r} to be one of answer, check"):
        ledger.spend(kind=kind)
    with pytest.raises(BudgetExceededError, match="not paid for"):
        ledger.use(kind=kind)
    assert ledger.spent == 0
    with pytest.raises(ValueError, match="kind='check' to be one of release"):
        JournalLedger((a_plan(),)).spend(kind="check")
    assert not JournalLedger(()).spend()


def test_the_journal_names_kinds_and_a_resumed_ledger_reads_them(tmp_path: Path) -> None:
    def ledger() -> JournalLedger:
        return JournalLedger((of_kinds(),), journal=tmp_path / "journal", block=3)

    first = ledger()
    assert first.spend(kind="check")
    assert first.spend(2, kind="answer")
    lines = [json.loads(line) for line in (tmp_path / "journal").read_text().splitlines() if line]
    assert lines[1:] == [
        {"spent_up_to": 3, "kind": "check"},
        {"spent_up_to": 3, "kind": "answer"},
    ]
    # As after a crash: of each kind its block stays spent, and pays for nothing any more.
    resumed = ledger()
    assert resumed.spent_by_kind == {"check": 3, "answer": 3}
    with pytest.raises(BudgetExceededError):
        resumed.use(kind="check")
    assert resumed.spend(7, kind="check")
    assert not resumed.spend(kind="check")
    assert resumed.spend(kind="answer")
    assert not resumed.spend(kind="answer")
    resumed.close()
    assert ledger().spent_by_kind == {"check": 10, "answer": 4}


def test_closing_gives_back_of_each_kind_what_was_not_used(tmp_path: Path) -> None:
    def ledger() -> JournalLedger:
        return JournalLedger((of_kinds(),), journal=tmp_path / "journal", block=4)

    first = ledger()
    assert first.spend(kind="check") and first.spend(2, kind="answer")
    first.close()
    assert ledger().spent_by_kind == {"check": 1, "answer": 2}


@pytest.mark.parametrize(
    "line",
    [
        '{"spent_up_to": 6}',
        '{"spent_up_to": 6, "kind": "release"}',
        '{"spent_up_to": 6, "kind": null}',
        '{"spent_up_to": 6, "kind": ["check"]}',
        '{"spent_up_to": 11, "kind": "check"}',
        '{"spent_up_to": 2, "kind": "check"}',
        '{"spent_up_to": 5, "kind": "answer"}',
        '{"spent_up_to": 6, "kind": "check", "by": "me"}',
        '{"kind": "check"}',
        '{"finished_at": 0, "kind": "check"}',
        '{"finished_at": 1, "kind": "answer"}',
    ],
)
def test_an_entry_of_no_kind_is_refused(tmp_path: Path, line: str) -> None:
    journal = tmp_path / "journal"
    ledger = JournalLedger((of_kinds(),), journal=journal, block=3)
    assert ledger.spend(kind="check")
    journal.write_text(f"{journal.read_text()}\n{line}")
    with pytest.raises(PrivacyError, match="Line 4 of the privacy journal"):
        JournalLedger((of_kinds(),), journal=journal)


def test_one_kind_writes_and_reads_as_before_there_were_kinds(tmp_path: Path) -> None:
    """Under whatever name: journals of version 0.1 name none."""
    named = replace(a_plan(), charges={"step": Charge(gaussian_event(2.0), 10)})
    assert digest_of((named,), 1e-5) == digest_of((a_plan(),), 1e-5)
    assert a_ledger(tmp_path).spend(3)
    resumed = JournalLedger((named,), journal=journal_of(tmp_path))
    assert resumed.spent_by_kind == {"step": 3}
    assert resumed.spend(kind="step")
    assert json.loads(journal_of(tmp_path).read_text().splitlines()[-1]) == {"spent_up_to": 4}


def test_plans_of_other_kinds_are_other_plans() -> None:
    plans = [
        of_kinds(),
        of_kinds(checks=9),
        of_kinds(answers=5),
        of_kinds(noise=21.0),
        replace(of_kinds(), charges={**of_kinds().charges, "step": Charge(gaussian_event(9.0), 1)}),
        replace(of_kinds(), charges={"c": of_kinds().charges["check"]}),
        replace(of_kinds(), charges=dict(zip("ca", of_kinds().charges.values(), strict=True))),
    ]
    assert len({digest_of((plan,), 1e-5) for plan in plans}) == len(plans)
    turned = dict(reversed(of_kinds().charges.items()))
    assert digest_of((replace(of_kinds(), charges=turned),), 1e-5) == digest_of((of_kinds(),), 1e-5)


@pytest.mark.parametrize("epsilon", [1.2, 1.6, 2.0])
def test_a_budget_cuts_all_kinds_to_one_fraction_and_none_to_nothing(epsilon: float) -> None:
    plan, budget = of_kinds(checks=20, answers=8), Budget(epsilon=epsilon, delta=1e-5)

    def part(number: int) -> dict[str, int]:
        return {"check": number, "answer": math.ceil(8 * number / 20)}

    fitting = [n for n in range(21) if epsilon_of(plan, part(n), 1e-5) <= epsilon]
    assert 0 < max(fitting) < 20
    assert capacity((plan,), budget) == part(max(fitting))
    assert capacity((plan,), None) == {"check": 20, "answer": 8}
    assert capacity((plan,), Budget(epsilon=90.0)) == {"check": 20, "answer": 8}


def test_not_one_of_each_kind_fits() -> None:
    with pytest.raises(
        BudgetExceededError, match=r"of each kind \(check, answer\) fits .*one of each costs"
    ):
        capacity((of_kinds(),), Budget(epsilon=0.1))


def test_kinds_are_composed_and_not_added_up_apart() -> None:
    plan = of_kinds(checks=100, answers=4)
    both = epsilon_of(plan, {"check": 100, "answer": 4}, 1e-5)
    # 100 / 20^2 + 4 / 4^2 = 1 / z^2 of one Gaussian.
    alone = epsilon_of(of(gaussian_event(2**0.5)), {RELEASE: 1}, 1e-5)
    assert both == pytest.approx(alone, rel=1e-3)
    assert both < epsilon_of(plan, {"check": 100}, 1e-5) + epsilon_of(plan, {"answer": 4}, 1e-5)
    assert epsilon_of(plan, {}, 1e-5) == epsilon_of(plan, {"step": 9}, 1e-5) == 0.0


def test_two_plans_of_one_observer_and_unit_become_one() -> None:
    first, second = (replace(a_plan(), charges={kind: Charge(kind, 2)}) for kind in ("a", "b"))
    said = replace(second, theorem="T", assumptions=("x", "y"), float_noise=False)
    both = replace(first, theorem="S", assumptions=("x",)).beside(said)
    assert both.counts == {"a": 2, "b": 2}
    assert (both.theorem, both.assumptions, both.float_noise) == ("S; T", ("x", "y"), True)
    for other in (
        first,
        replace(second, observer=AGGREGATOR),
        replace(second, unit=Unit.EXAMPLE),
        replace(second, relation=REPLACE_ONE),
    ):
        with pytest.raises(UnsoundReleaseError, match="Two plans cannot be one"):
            first.beside(other)


def test_a_halted_run_says_which_kind_was_used_up() -> None:
    run = a_run(ledger=JournalLedger((of_kinds(),)))
    assert run.spend(4, kind="answer")
    assert not run.spend(kind="answer")
    assert run.halted == "the budget was used up after 4 releases of kind 'answer'"
    run = a_run(ledger=JournalLedger((a_plan(3),)))
    assert run.spend(3)
    assert not run.spend()
    assert run.halted == "the budget was used up after 3 releases"
