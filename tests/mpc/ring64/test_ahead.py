"""Material made ahead: the same results, used once, and by nobody that it is not for."""

import pickle
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from privtrain.core.errors import (
    DataError,
    PartyLostError,
    PrivtrainError,
    ProtocolError,
    TamperedShareError,
    UnsupportedError,
)
from privtrain.core.fields import told_fields
from privtrain.core.runtime import Party, Payload, link_of
from privtrain.mpc.descent import PeerDescent
from privtrain.mpc.engine import with_helpers
from privtrain.mpc.keystream import Keystream
from privtrain.mpc.material.journal import Journal
from privtrain.mpc.material.segments import JOURNAL, numbers, place, size_in
from privtrain.mpc.material.store import Store
from privtrain.mpc.ring64 import material
from privtrain.mpc.ring64.ahead import Offline, Online, _Streams
from privtrain.mpc.ring64.engine import Ring64
from privtrain.runtimes.threads import Threads
from tests.disk import little_space
from tests.mpc.ring64.mesh import names_of, run
from tests.mpc.ring64.phases import STUDY, Computes, X, compute, deal, inputs_of
from tests.mpc.ring64.test_engine import ROWS, descent, in_plaintext

ROOT = Path(__file__).parents[3]
FIRST, LAST = names_of(2)
SPENT = "is spent or was never dealt: a run with it was begun"


@pytest.mark.parametrize("count", [2, 3])
def test_results_are_those_of_the_streaming_engine(count: int, tmp_path: Path) -> None:
    streamed = run(Computes(Ring64()), count, inputs_of(count))
    offline = deal(tmp_path, count)
    online = compute(tmp_path, count)
    for name in names_of(count):
        expected, given = streamed.payloads[name], online.payloads[name]
        assert expected.keys() == given.keys()
        for key in ("bit", "largest", "said"):
            assert torch.equal(given[key], expected[key])
        for key in ("relu", "softmax", "sigmoid"):
            assert torch.allclose(given[key], expected[key], atol=1e-3)
        assert torch.allclose(given["relu"], (X @ X.t()).clamp(min=0), atol=2**-15)
        assert not any(bool(offline.payloads[name][key].any()) for key in ("relu", "softmax"))
    # Offline nothing is opened, online the dealer is not there; what is opened takes no more.
    kinds = {entry.kind for link in offline.links.values() for entry in link.entries}
    assert kinds == {
        "shapes",
        "public key",
        "announcement",
        "material",
        "material taken",
        "dealt",
    }
    assert "dealer" not in online.links and not online.entries("material")
    assert online.bytes() == streamed.bytes() and online.rounds() <= streamed.rounds()
    dealt = [
        entry for entry in offline.entries("material") if entry.receiver == names_of(count)[-1]
    ]
    assert sum(entry.bytes for entry in dealt) > sum(
        entry.bytes for entry in streamed.entries("material")
    )


@dataclass(frozen=True)
class Phase:
    """Takes the engine of a phase into a descent."""

    program: PeerDescent
    engine: Ring64

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        changed = replace(self.program.descent, engine=self.engine)
        return replace(self.program, descent=changed)(inputs, party)


def test_descent_of_peers(tmp_path: Path) -> None:
    program, model = descent()
    peers = PeerDescent(descent=program)
    for phase in (Offline(study=STUDY, folder=tmp_path), Online(study=STUDY, folder=tmp_path)):
        engine = replace(program.engine, material=phase)  # type: ignore[type-var]
        ran = run(Phase(peers, engine), 3, rows=ROWS, engine=engine)
    expected = in_plaintext(model)
    for name in names_of(3):
        assert float((ran.payloads[name]["weights"] - expected).abs().max()) < 2e-4


def test_over_sockets_on_one_machine(tmp_path: Path) -> None:
    for phase in (Offline(study=STUDY, folder=tmp_path), Online(study=STUDY, folder=tmp_path)):
        engine = Ring64(material=phase)
        programs = with_helpers(engine, dict.fromkeys(names_of(2), Computes(engine)))
        replies = Threads(timeout=20).run(programs, inputs_of(2))
    assert torch.equal(replies[FIRST].payload["bit"], (X @ X.t() > 0).double())


def test_what_lies_there_is_the_owners_alone_and_sealed(tmp_path: Path) -> None:
    deal(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"material.key", JOURNAL, "000000000000.sealed"}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    # The seed of a party that gets no corrections, and nothing else.
    assert numbers(tmp_path / FIRST) == [0] and len(numbers(tmp_path / LAST)) == 2
    compute(tmp_path)
    assert not list(tmp_path.rglob("*.sealed"))


@pytest.mark.parametrize("restored", [(FIRST,), (LAST,)])
def test_material_is_used_once_also_where_an_older_copy_is_brought_back(
    restored: tuple[str, ...], tmp_path: Path
) -> None:
    deal(tmp_path / "store")
    shutil.copytree(tmp_path / "store", tmp_path / "older")
    compute(tmp_path / "store")
    with pytest.raises(ProtocolError, match=rf"{SPENT}.*deal anew"):
        compute(tmp_path / "store")
    for name in restored:
        shutil.rmtree(tmp_path / "store" / name)
        shutil.copytree(tmp_path / "older" / name, tmp_path / "store" / name)
    with pytest.raises(ProtocolError, match=SPENT):
        compute(tmp_path / "store")
    # Of the one that was brought back nothing was read either.
    for name in restored:
        assert Store(tmp_path / "store" / name, study=STUDY, receiver=name).spent.blocks == 0


@dataclass
class Listens:
    """Takes note of what parties send one another."""

    masked: dict[str, torch.Tensor] = field(default_factory=dict)
    kinds: set[str] = field(default_factory=set)

    def __call__(self, sender: str, to: str, kind: str, tensor: torch.Tensor) -> torch.Tensor:
        self.kinds.add(kind)
        if kind == "masked share":
            self.masked.setdefault(sender, tensor)
        return tensor

    @property
    def rows(self) -> torch.Tensor:
        """The rows under their mask, which were opened first."""
        return torch.stack(list(self.masked.values())).sum(0).view(2, 3)


def heard(folder: Path, rows: torch.Tensor = X, **more: Any) -> Listens:
    """What was sent online, also where it came to nothing."""
    listens = Listens()
    with suppress(ProtocolError):
        compute(folder, rows=rows, change=listens, timeout=2, **more)
    return listens


def test_a_twin_that_does_not_spend_gives_away_differences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = X + torch.tensor([0.5, 0.0, -2.0])
    deal(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "spend", lambda self, spent: setattr(self, "spent", spent))
        patch.setattr(Store, "_delete", lambda self, number: None)
        leaks = [heard(tmp_path, rows).rows for rows in (X, other)]
    assert torch.equal((leaks[1] - leaks[0]) * 2.0**-16, other - X)
    # The engine as it is computes once, and shows nothing the second time.
    compute(tmp_path)
    assert heard(tmp_path, other).kinds == {"material session"}


def test_masks_are_others_where_other_numbers_of_rows_are_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is dealt for 7 rows must not be taken apart by a run on 8, such as masks for shares."""

    def masked(folder: Path) -> list[torch.Tensor]:
        deal(folder / "7")
        shutil.copytree(folder / "7", folder / "8")
        return [heard(folder / str(number), number=number).rows for number in (7, 8)]

    as_dealt, other = masked(tmp_path / "engine")
    assert not bool((as_dealt == other).any())
    with pytest.raises(ProtocolError, match=rf"material of {LAST} to be .* do not run the same"):
        deal(tmp_path / "again")
        compute(tmp_path / "again", number=8, timeout=2)
    with monkeypatch.context() as patch:  # a twin whose streams do not follow
        patch.setattr(_Streams, "__call__", lambda self, said: tuple(map(Keystream, self.seeds)))
        assert torch.equal(*masked(tmp_path / "twin"))


def test_inputs_of_other_shapes_are_refused_before_use(tmp_path: Path) -> None:
    deal(tmp_path)
    with pytest.raises(ProtocolError, match=r"dealt for inputs of other shapes\. Nothing was used"):
        compute(tmp_path, rows=torch.cat([X, X]), timeout=2)
    compute(tmp_path)


def test_a_crash_around_the_journal_never_lets_material_be_used_twice(tmp_path: Path) -> None:
    folders = [
        tmp_path / f"{name} {when}" for name in (FIRST, LAST) for when in ("before", "after")
    ]
    for folder in folders:
        deal(folder)
    crash = [sys.executable, "-m", "tests.mpc.ring64.phases", *map(str, folders)]
    subprocess.run(crash, cwd=ROOT, check=True)
    for folder in folders:
        spent = [
            name
            for name in (FIRST, LAST)
            if (folder / name / JOURNAL).read_text().count("spent") > 1
        ]
        killed, when = folder.name.split(" ")
        assert (killed in spent) is (when == "after")
        if spent:
            with pytest.raises(ProtocolError, match=SPENT):
                compute(folder)
        else:
            compute(folder)


def test_folders_that_were_not_dealt_together_are_refused_before_use(tmp_path: Path) -> None:
    for folder in ("one", "other"):
        deal(tmp_path / folder)
    kept = tmp_path / "kept"
    shutil.move(tmp_path / "one" / LAST, kept)
    shutil.copytree(tmp_path / "other" / LAST, tmp_path / "one" / LAST)
    with pytest.raises(ProtocolError, match=r"of session .* that in .* not dealt together"):
        compute(tmp_path / "one")
    shutil.rmtree(tmp_path / "one" / LAST)
    shutil.move(kept, tmp_path / "one" / LAST)
    compute(tmp_path / "one")
    compute(tmp_path / "other")


def test_another_study_or_rank_is_refused(tmp_path: Path) -> None:
    deal(tmp_path)
    with pytest.raises(DataError, match=r"study='60.*is for '5f.*deal anew"):
        compute(tmp_path, study="60" * 32, timeout=2)
    (tmp_path / FIRST).rename(tmp_path / "kept")
    (tmp_path / LAST).rename(tmp_path / FIRST)
    (tmp_path / "kept").rename(tmp_path / LAST)
    with pytest.raises(DataError, match=r"receiver='computing-.'.*is for 'computing-"):
        compute(tmp_path, timeout=2)
    with pytest.raises(DataError, match="to hold material"):
        compute(tmp_path / "nowhere", timeout=2)


def test_parties_of_two_studies_are_refused(tmp_path: Path) -> None:
    for study in (STUDY, "60" * 32):
        deal(tmp_path / study, study=study)
    programs = {
        name: Computes(Ring64(material=Online(study=study, folder=tmp_path / study)))
        for name, study in ((FIRST, STUDY), (LAST, "60" * 32))
    }
    engine = programs[FIRST].engine
    with pytest.raises(ProtocolError, match="computes another study than"):
        run(programs[FIRST], 2, inputs_of(2), programs=programs, engine=engine)


@pytest.mark.parametrize(("name", "number"), [(FIRST, 0), (LAST, 0), (LAST, 1)])
def test_a_changed_byte_is_refused(name: str, number: int, tmp_path: Path) -> None:
    deal(tmp_path)
    path = place(tmp_path / name, number)
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    with pytest.raises(TamperedShareError, match="was changed, or made for"):
        compute(tmp_path, timeout=2)
    with pytest.raises(ProtocolError, match=SPENT):
        compute(tmp_path, timeout=2)


def test_dealing_that_broke_off_is_no_material(tmp_path: Path) -> None:
    deal(tmp_path / "store")
    place(tmp_path / "store" / LAST, 1).unlink()
    with pytest.raises(ProtocolError, match="no more material"):
        compute(tmp_path / "store", timeout=2)
    with pytest.raises(DataError, match=r"to be new or empty; it holds .*fresh material"):
        deal(tmp_path / "store", timeout=2)


@pytest.mark.parametrize("products", [1, 3])
def test_another_program_than_was_dealt_for_is_an_error(products: int, tmp_path: Path) -> None:
    deal(tmp_path, products=products)
    with pytest.raises((ProtocolError, TamperedShareError), match="program"):
        compute(tmp_path, timeout=2)


def test_a_full_store_makes_dealing_wait_until_some_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(material, "LARGEST_CHUNK", material.FIRST_CHUNK)
    bound, told, most = 60_000, threading.Event(), [0]
    lines: list[str] = []

    def tell(line: str) -> None:
        lines.append(line)
        told.set()

    errors: list[Exception] = []

    def dealing() -> None:
        try:
            deal(tmp_path, products=150, bound=bound, tell=tell, timeout=2.0)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=dealing)
    thread.start()
    assert told.wait(20)
    # Longer than anybody is waited for who says nothing: dealer and parties know of each other.
    end = time.monotonic() + 4
    while time.monotonic() < end:
        most[0] = max(most[0], size_in(tmp_path / LAST))
        time.sleep(0.05)
    assert thread.is_alive() and not errors
    online = compute(tmp_path, products=150)
    thread.join(20)
    assert not errors and not thread.is_alive()
    assert torch.allclose(online.payloads[FIRST]["relu"], (X @ X.t()).clamp(min=0), atol=2**-15)
    assert 0 < most[0] <= bound
    assert f"at most bound={bound}" in lines[0] and str(tmp_path / LAST) in lines[0]


def test_dealing_ends_with_the_run_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(material, "LARGEST_CHUNK", material.FIRST_CHUNK)
    told, errors, messages = threading.Event(), [], []

    def dealing() -> None:
        try:
            deal(tmp_path, products=300, bound=60_000, tell=lambda _: told.set(), timeout=5)
        except Exception as error:
            errors.append(error)

    def breaks(sender: str, to: str, kind: str, tensor: torch.Tensor) -> torch.Tensor:
        messages.append(kind)
        if messages.count("masked share") > 100:
            raise OSError("the power is gone")
        return tensor

    thread = threading.Thread(target=dealing)
    thread.start()
    assert told.wait(20)
    with pytest.raises(OSError, match="the power"):
        compute(tmp_path, products=300, change=breaks, timeout=5)
    thread.join(20)
    assert not thread.is_alive()
    assert any("has ended: what is left of it can never be used" in str(each) for each in errors)


@dataclass(frozen=True)
class OpensAtOnce:
    """A program that announces nothing before its first opening."""

    engine: Ring64

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with self.engine.open(party) as session:
            rows = session.take(inputs["rows"])
            return {"squares": session.reveal([rows.square()], kind="result share")[0]}


def test_nothing_is_sent_under_a_mask_before_all_have_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what one party opened would be masked again with the other's older copy."""
    engine = Ring64(material=Offline(study=STUDY, folder=tmp_path))
    run(OpensAtOnce(engine), 2, inputs_of(2), engine=engine)
    spend, sent = Journal.spend, []

    def crashes(self: Journal, spent: Any) -> None:
        if self.receiver == LAST:
            raise OSError("the power is gone")
        spend(self, spent)

    def overhear(sender: str, to: str, kind: str, tensor: torch.Tensor) -> torch.Tensor:
        sent.append(kind)
        return tensor

    monkeypatch.setattr(Journal, "spend", crashes)
    engine = Ring64(material=Online(study=STUDY, folder=tmp_path))
    with pytest.raises(OSError, match="the power"):
        run(OpensAtOnce(engine), 2, inputs_of(2), engine=engine, change=overhear, timeout=3)
    assert set(sent) == {"material session", "public key"}


def test_a_bound_below_one_message_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"to fit bound=1000: raise the bound"):
        deal(tmp_path, bound=1000, timeout=2)
    with pytest.raises(ValueError, match="bound=0"):
        Offline(study=STUDY, bound=0)


def test_a_full_disk_is_named_and_spends_nothing(tmp_path: Path) -> None:
    with little_space(10_000), pytest.raises(PrivtrainError, match="is full"):
        deal(tmp_path / "full", timeout=2)
    deal(tmp_path / "store")
    journal = tmp_path / "store" / LAST / JOURNAL
    with little_space(journal.stat().st_size + 5), pytest.raises(PrivtrainError, match="is full"):
        compute(tmp_path / "store", timeout=2)
    compute(tmp_path / "store")


def test_the_dealer_is_there_offline_alone(tmp_path: Path) -> None:
    engine = Ring64(material=Online(study=STUDY, folder=tmp_path))
    assert engine.helper_names == () and engine.helpers({FIRST: Computes(engine)}) == {}
    with pytest.raises(UnsupportedError, match="with material made ahead is without a 'dealer'"):
        run(Computes(engine), 2, inputs_of(2))
    offline = Ring64(material=Offline(study=STUDY, folder=tmp_path))
    assert offline.helper_names == ("dealer",)
    with pytest.raises(UnsupportedError, match="needs a 'dealer'"):
        run(Computes(offline), 2, inputs_of(2), engine=engine)
    nowhere = Ring64(material=Offline(study=STUDY))
    with pytest.raises(ValueError, match=r"folder=None .*keeps its material"):
        run(Computes(nowhere), 2, inputs_of(2), engine=nowhere)


def test_the_phase_is_no_part_of_what_identifies_a_study(tmp_path: Path) -> None:
    engine = Ring64(material=Offline(study=STUDY, folder=tmp_path))
    assert repr(engine) == "Ring64()" and told_fields(engine) == ()
    assert pickle.loads(pickle.dumps(engine)) == engine


@dataclass(frozen=True)
class Leaves:
    """A dealer that is gone before it has dealt all."""

    engine: Ring64

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with self.engine.open(party) as session:
            session.dealt(lambda: torch.zeros(5, dtype=torch.int64), (5,))
            if link_of(party).names[link_of(party).rank] == "dealer":
                raise RuntimeError("gone")
        return {}


def test_a_dealer_that_leaves_leaves_no_material(tmp_path: Path) -> None:
    engine = Ring64(material=Offline(study=STUDY, folder=tmp_path))
    with pytest.raises(RuntimeError, match="gone"):
        run(Leaves(engine), 2, inputs_of(2), engine=engine)
    with pytest.raises((ProtocolError, PartyLostError), match="no more material"):
        compute(tmp_path, timeout=2)
