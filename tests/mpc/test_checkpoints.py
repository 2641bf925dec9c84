import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from privtrain.core.abilities import Keeping
from privtrain.core.errors import DataError, PrivtrainError, ProtocolError
from privtrain.core.task import Rows
from privtrain.mpc import checkpoints
from privtrain.mpc.checkpoints import (
    KEPT,
    Keeper,
    Kept,
    began_anew,
    forget,
    keepings_in,
    own_folder,
    read,
    study_digest,
    write,
)
from privtrain.mpc.descent import PeerDescent, SecureDescent
from privtrain.mpc.layers import translate
from privtrain.mpc.ring64.engine import Ring64
from privtrain.mpc.sharing import decode, reveal
from tests.mpc.federations import CLASSES, FEATURES, table
from tests.mpc.ring64.mesh import Change, Ran, names_of, run, unchanged

STUDY = 64 * "a"
EPOCHS, EACH = 3, 4
"""Epochs, and steps in each of them: 80 rows in batches of 20."""

NEAR = 2e-3
"""How far rounding moves weights here; what a broken twin does is ten times as far."""


def model() -> nn.Module:
    """Layers without a rectifier, at whose kink rounding would show."""
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(FEATURES, 10), nn.Linear(10, 8), nn.Linear(8, CLASSES))


def parts(count: int, rows: int = 80) -> dict[str, Rows]:
    pieces = torch.arange(rows).tensor_split(count)
    return {name: table().take(piece) for name, piece in zip(names_of(count), pieces, strict=True)}


def programs(folder: Path | None, count: int, epochs: int) -> dict[str, PeerDescent]:
    descent = SecureDescent(
        engine=Ring64(),
        layers=translate(model()),
        by_rows=True,
        epochs=epochs,
        batch_size=20,
        learning_rate=0.25,
        momentum=0.9,
    )
    keepings = keepings_in(folder, names_of(count), STUDY)
    return {
        name: PeerDescent(descent=replace(descent, keeping=keepings.get(name)))
        for name in names_of(count)
    }


def train(
    folder: Path | None,
    count: int = 2,
    *,
    change: Change = unchanged,
    rows: int = 80,
    epochs: int = EPOCHS,
) -> Ran:
    made = programs(folder, count, epochs)
    return run(made["computing-0"], rows=parts(count, rows), change=change, programs=made)


def weights(ran: Ran) -> Tensor:
    return ran.payloads["computing-0"]["weights"]


def steps(folder: Path, count: int = 2) -> list[list[int]]:
    """The steps of which each party keeps shares, the newest first."""
    return [[each.step for each in read(keeping)] for keeping in kept_in(folder, count)]


def kept_in(folder: Path, count: int = 2) -> list[Keeping]:
    return list(keepings_in(folder, names_of(count), STUDY).values())


class BrokenError(Exception):
    """The end of a process."""


@pytest.fixture(scope="module")
def uninterrupted() -> dict[int, Tensor]:
    return {count: weights(train(None, count)) for count in (2, 3)}


def at_message(kind: str, number: int, culprit: str = "computing-1") -> Change:
    """The culprit dies at its message of that number and kind."""
    seen = Counter[str]()

    def change(sender: str, to: str, said: str, tensor: Tensor) -> Tensor:
        if sender == culprit and said == kind:
            seen[to] += 1
            if seen[to] == number:
                raise BrokenError(f"{culprit} died")
        return tensor

    return change


def dies_writing(
    monkeypatch: pytest.MonkeyPatch, step: int, culprit: str = "computing-1"
) -> Callable[[], None]:
    """The culprit dies where it would write; the others have written, or will."""

    def broken(keeping: Keeping, kept: Kept) -> None:
        if (keeping.name, kept.step) == (culprit, step):
            raise BrokenError(f"{culprit} died")
        write(keeping, kept)

    monkeypatch.setattr(checkpoints, "write", broken)
    return lambda: monkeypatch.setattr(checkpoints, "write", write)


def in_step(step: int) -> Change:
    """The culprit dies in a step, from 0, at its second masked message there."""
    total = train(None).rounds()
    # All steps take equally many rounds but the first, which has no step before it.
    of_a_step = -(-total // (EPOCHS * EACH))
    return at_message("masked share", total - (EPOCHS * EACH - step) * of_a_step + 2)


@pytest.mark.parametrize(
    ("broken_at", "start"), [(1, 0), (EACH - 1, 0), (EACH + 2, EACH), (3 * EACH - 1, 2 * EACH)]
)
def test_a_run_that_breaks_off_in_a_step_goes_on_from_the_last_epoch(
    broken_at: int, start: int, uninterrupted: dict[int, Tensor], tmp_path: Path
) -> None:
    with pytest.raises(BrokenError):
        train(tmp_path, change=in_step(broken_at))
    ran = train(tmp_path)
    assert ran.payloads["computing-1"]["start"].tolist() == [start, EPOCHS * EACH]
    # What is taken again is less than an epoch.
    assert broken_at - start <= EACH
    torch.testing.assert_close(weights(ran), uninterrupted[2], rtol=0, atol=NEAR)
    assert steps(tmp_path) == [[12, 8], [12, 8]]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(("step", "start"), [(EACH, 0), (2 * EACH, EACH), (3 * EACH, 2 * EACH)])
@pytest.mark.parametrize("culprit", [0, -1])
def test_a_crash_between_two_parties_writes_leaves_a_common_step(
    culprit: int,
    step: int,
    start: int,
    count: int,
    uninterrupted: dict[int, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mend = dies_writing(monkeypatch, step, names_of(count)[culprit])
    with pytest.raises(BrokenError):
        train(tmp_path, count)
    assert len({tuple(each) for each in steps(tmp_path, count)}) == 2
    mend()
    ran = train(tmp_path, count)
    assert {int(each["start"][0]) for each in ran.payloads.values() if each} == {start}
    torch.testing.assert_close(weights(ran), uninterrupted[count], rtol=0, atol=NEAR)


def test_two_crashes_at_one_step_leave_no_shares_that_do_not_fit_together(
    uninterrupted: dict[int, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Step 8 of the first sitting lies at one party, that of the second sitting at the other one.
    for culprit in names_of(2):
        mend = dies_writing(monkeypatch, 2 * EACH, culprit)
        with pytest.raises(BrokenError):
            train(tmp_path, 2)
        mend()
    kept = [read(keeping)[0] for keeping in kept_in(tmp_path)]
    assert [each.step for each in kept] == [8, 8]
    assert len({each.sitting for each in kept}) == 2
    ran = train(tmp_path)
    assert int(ran.payloads["computing-0"]["start"][0]) == EACH
    torch.testing.assert_close(weights(ran), uninterrupted[2], rtol=0, atol=NEAR)


def test_what_broke_off_before_the_opening_opens_what_was_trained(
    tmp_path: Path, uninterrupted: dict[int, Tensor]
) -> None:
    with pytest.raises(BrokenError):
        train(tmp_path, change=at_message("weight share", 1))
    assert steps(tmp_path) == [[12, 8], [12, 8]]
    shares = [read(keeping)[0].shares for keeping in kept_in(tmp_path)]
    ran = train(tmp_path)
    torch.testing.assert_close(weights(ran), uninterrupted[2], rtol=0, atol=NEAR)
    # No step is taken again, so that the weights are the same to the last bit: were they opened in
    # both parts, the second opening tells nothing new.
    assert ran.bytes() == 0
    trained = decode(reveal(shares))[: len(weights(ran))]
    assert sorted(trained.tolist()) == sorted(weights(ran).tolist())
    # Shared again: an old file and what the other party sends now do not add up to the weights.
    sent = dict(ran.links["computing-1"].sent)["weight share"].view(torch.int64)
    assert not set(decode(shares[0][: len(sent)] + sent).tolist()) & set(trained.tolist())


def test_both_parts_send_what_one_run_sends_and_the_rows_once_more(
    tmp_path: Path,
) -> None:
    whole = train(None)
    one = train(tmp_path / "one")
    # A checkpoint takes no message: weights are truncated before the next step anyway.
    assert one.bytes() == whole.bytes()
    assert one.rounds() == whole.rounds()
    with pytest.raises(BrokenError):
        train(tmp_path / "two", change=at_message("weight share", 1))
    for keeping in kept_in(tmp_path / "two"):
        keeping.folder.joinpath("step-000000000012.shares").unlink()
    rest = train(tmp_path / "two")
    # Rows are opened once more, and the last epoch is all that is left.
    opened, before = 8 * 80 * FEATURES, train(None, epochs=EPOCHS - 1)
    assert rest.bytes() == opened + whole.bytes() - before.bytes()
    # To agree, each party tells the other one and the dealer once: three times three numbers.
    told = sorted(entry.bytes for entry in rest.entries("announcement"))
    assert told == [*(entry.bytes for entry in whole.entries("announcement")), *4 * [72]]


def test_what_a_folder_holds_is_for_its_owner_alone_and_goes_when_it_is_forgotten(
    tmp_path: Path,
) -> None:
    train(tmp_path)
    for keeping in kept_in(tmp_path):
        files = list(keeping.folder.iterdir())
        assert sorted(path.suffix for path in files) == ["", *KEPT * [".shares"]]
        assert {path.stat().st_mode & 0o777 for path in files if path.suffix} == {0o600}
        for folder in (keeping.folder, *keeping.folder.parents[:2]):
            assert folder.stat().st_mode & 0o777 == 0o700
        assert folder.name == "private"
    first, second = kept_in(tmp_path)
    forget(first)
    assert read(first) == []
    assert len(read(second)) == KEPT
    forget(second)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------- what is in a file


def p_of_uniform_bytes(shares: Tensor) -> float:
    counts = torch.bincount(shares.contiguous().view(torch.uint8).long(), minlength=256)
    return float(stats.chisquare(counts.numpy()).pvalue)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[list[list[Kept]]]:
    """Of several runs, the checkpoints of each of three parties."""
    made = []
    for _ in range(4):
        folder = tmp_path_factory.mktemp("kept")
        train(folder, 3)
        made.append([read(keeping) for keeping in kept_in(folder, 3)])
    return made


@pytest.mark.parametrize("factors", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, -1)])
def test_files_of_all_parties_but_one_are_uniform(
    factors: tuple[int, ...], files: list[list[list[Kept]]]
) -> None:
    for age in range(KEPT):
        mixed = torch.cat(
            [
                sum(
                    (factor * kept[age].shares for factor, kept in zip(factors, run, strict=True)),
                    torch.zeros((), dtype=torch.int64),
                )
                for run in files
            ]
        )
        assert p_of_uniform_bytes(mixed) > 1e-6


def test_files_of_two_steps_do_not_add_up_and_those_of_one_step_do(
    files: list[list[list[Kept]]],
) -> None:
    mixed = torch.cat(
        [new.shares + second[0].shares + third[0].shares for (_, new), second, third in files]
    )
    assert p_of_uniform_bytes(mixed) > 1e-6
    # The same test tells what is no share apart: with the files of all parties of one step.
    whole = torch.cat([reveal([kept[0].shares for kept in run]) for run in files])
    assert p_of_uniform_bytes(whole) < 1e-100
    assert float(decode(whole).abs().max()) < 10


# ------------------------------------------------------------------- broken twins


def far(ran: Ran, wanted: Tensor) -> bool:
    return float((weights(ran) - wanted).abs().max()) > 10 * NEAR


def broken_off(folder: Path) -> None:
    with pytest.raises(BrokenError):
        train(folder, change=in_step(2 * EACH))
    assert steps(folder)[0][0] == 2 * EACH


def test_a_twin_that_forgets_momentum_is_told_apart(
    uninterrupted: dict[int, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_off(tmp_path)
    put_back = Keeper._put_back

    def forgetful(self: Keeper, kept: Tensor | None, parties: int) -> None:
        put_back(self, kept, parties)
        for each in self.learned:
            each.step = None

    monkeypatch.setattr(Keeper, "_put_back", forgetful)
    assert far(train(tmp_path), uninterrupted[2])


def test_a_twin_whose_parties_take_different_steps_is_told_apart(
    uninterrupted: dict[int, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_off(tmp_path)

    def mixed(keeping: Keeping) -> list[Kept]:
        newest, before = read(keeping)
        odd = keeping.name == "computing-1"
        return [replace(newest, shares=before.shares if odd else newest.shares), before]

    monkeypatch.setattr(checkpoints, "read", mixed)
    assert far(train(tmp_path), uninterrupted[2])


# ------------------------------------------------------------------- who reads the weights


@pytest.mark.parametrize("readers", [(), (0,), (2,), (1, 2)])
def test_weights_go_to_their_readers_alone_or_stay_shared(
    readers: tuple[int, ...], uninterrupted: dict[int, Tensor], tmp_path: Path
) -> None:
    made = {
        name: replace(each, descent=replace(each.descent, readers=readers))
        for name, each in programs(tmp_path, 3, EPOCHS).items()
    }
    ran = run(made["computing-0"], rows=parts(3), programs=made)
    for rank, name in enumerate(names_of(3)):
        assert ("weights" in ran.payloads[name]) is (rank in readers)
    for rank in readers:
        found = ran.payloads[f"computing-{rank}"]["weights"]
        torch.testing.assert_close(found, uninterrupted[3], rtol=0, atol=NEAR)
    # All others send each reader its share once, and nobody else anything.
    sent = sorted((each.sender, each.receiver) for each in ran.entries("weight share"))
    names = names_of(3)
    assert sent == sorted(
        (sender, names[reader]) for reader in readers for sender in names if sender != names[reader]
    )
    # Where they stay shared, what the parties kept is the model.
    shares = reveal([read(keeping)[0].shares for keeping in kept_in(tmp_path, 3)])
    together = decode(shares)[: len(uninterrupted[3])].sort().values
    torch.testing.assert_close(together, uninterrupted[3].sort().values, rtol=0, atol=NEAR)


# ------------------------------------------------------------------- refusals


def kept(step: int = 4) -> Kept:
    return Kept(step, 5, 80, torch.arange(10))


def keeping_at(folder: Path, name: str = "computing-0", study: str = STUDY) -> Keeping:
    return Keeping(folder=own_folder(folder, name), name=name, study=study)


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    keeping = keeping_at(tmp_path)
    assert read(keeping) == []
    for step in (4, 8, 12):
        write(keeping, kept(step))
    newest, before = read(keeping)
    assert (newest.step, newest.sitting, newest.rows, before.step) == (12, 5, 80, 8)
    assert torch.equal(newest.shares, torch.arange(10))


@pytest.mark.parametrize("place", [0, 40, -1])
def test_a_damaged_file_is_refused_with_the_way_out(place: int, tmp_path: Path) -> None:
    keeping = keeping_at(tmp_path)
    write(keeping, kept())
    (path,) = keeping.folder.glob("*.shares")
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{re.escape(str(path))} is damaged.*Delete it"):
        read(keeping)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="is damaged"):
        read(keeping)


def test_what_cannot_be_read_is_refused_with_the_way_out(tmp_path: Path) -> None:
    keeping = keeping_at(tmp_path)
    write(keeping, kept())
    (path,) = keeping.folder.glob("*.shares")
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=f"Cannot read the checkpoint {re.escape(str(path))}"):
        read(keeping)
    path.rmdir()
    (keeping.folder / "README").unlink()
    keeping.folder.rmdir()
    keeping.folder.write_text("")
    with pytest.raises(DataError, match=f"Cannot read the folder {re.escape(str(keeping.folder))}"):
        read(keeping)


def test_files_of_another_party_or_study_are_refused(tmp_path: Path) -> None:
    keeping = keeping_at(tmp_path)
    write(keeping, kept())
    other = keeping_at(tmp_path, "computing-1")
    other.folder.mkdir()
    (path,) = keeping.folder.glob("*.shares")
    (other.folder / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DataError, match=r"is of computing-0, and this is computing-1.*Put it back"):
        read(other)
    with pytest.raises(DataError, match=r"is of another study.*choose another folder"):
        read(keeping_at(tmp_path, study=64 * "b"))


def test_a_folder_that_cannot_be_written_ends_the_run_and_keeps_what_was_there(
    tmp_path: Path,
) -> None:
    keeping = keeping_at(tmp_path)
    write(keeping, kept())
    (keeping.folder / "step-000000000008.shares").mkdir()
    with pytest.raises(PrivtrainError, match="Cannot write"):
        write(keeping, kept(8))
    (keeping.folder / "step-000000000008.shares").rmdir()
    assert [each.step for each in read(keeping)] == [4]


def test_parties_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    broken_off(tmp_path)
    with pytest.raises(ProtocolError, match=r"are of 80 rows, and there are 79.*another folder"):
        train(tmp_path, rows=79)
    forget(kept_in(tmp_path)[1])
    with pytest.raises(ProtocolError, match=r"after steps \[\[4, 8\], \[\]\].*Name the folder"):
        train(tmp_path)


def test_no_second_model_is_trained_where_another_party_may_have_read_the_first(
    tmp_path: Path,
) -> None:
    """A training of one epoch, whose only checkpoint is its last."""
    train(tmp_path, epochs=1)
    forget(kept_in(tmp_path)[1])
    with pytest.raises(ProtocolError, match=r"after steps \[\[4\], \[\]\].*Name the folder"):
        train(tmp_path, epochs=1)


def test_how_to_begin_anew_is_said_where_shares_are_kept(tmp_path: Path) -> None:
    assert began_anew({}) == ""
    keepings = keepings_in(tmp_path, names_of(2), STUDY)
    assert f" {tmp_path}/private/shares keeps the shares" in began_anew(keepings)


def test_a_study_is_known_by_its_settings_and_its_start() -> None:
    start = model()
    assert study_digest("a", start) == study_digest("a", model())
    assert study_digest("a", start) != study_digest("b", start)
    with torch.no_grad():
        next(start.parameters()).add_(1e-6)
    assert study_digest("a", start) != study_digest("a", model())


class Branches(nn.Module):
    """Prints alike whatever its forward pass is."""

    def __init__(self, residual: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)
        self.residual = residual

    def forward(self, rows: Tensor) -> Tensor:
        values = self.first(rows)
        return self.second(values + rows if self.residual else values)  # type: ignore[no-any-return]


def test_a_study_is_known_by_what_it_runs() -> None:
    torch.manual_seed(0)
    model = Branches(residual=True)
    other = Branches(residual=False)
    other.load_state_dict(model.state_dict())
    assert str(model) == str(other)
    digests = {study_digest("a", model), study_digest("a", other)}
    model.first.weight.requires_grad_(False)
    digests |= {study_digest("a", model)}
    assert len(digests) == 3
    # What cannot be followed on shares has a digest, too.
    assert study_digest("a", nn.GRU(2, 2)) != study_digest("b", nn.GRU(2, 2))
    assert CLASSES == 4


def test_what_a_killed_process_left_of_a_file_is_deleted(tmp_path: Path) -> None:
    keeping = Keeping(folder=own_folder(tmp_path, "party-0"), name="party-0", study=STUDY)
    kept = Kept(4, 1, 80, torch.arange(5))
    write(keeping, kept)
    torn = keeping.folder / ".step-000000000008.shares.123.tmp"
    torn.write_bytes(b"a part of a share")
    write(keeping, replace(kept, step=8))
    assert not torn.exists()
    torn.write_bytes(b"a part of a share")
    forget(keeping)
    assert not any(tmp_path.iterdir())
