"""Study files: what is written is what comes back."""

import re
from pathlib import Path

import pytest

import privtrain as pt
from privtrain.command.study_file import Study, read_study, write_study
from privtrain.command.tables import make_trainer, settings_of

TRAINED = [
    pt.SGD(epochs=3, batch_size=None),
    pt.DPSGD(release=pt.Release(pt.Gaussian(0.5, 1.5)), gradients=pt.BookKeeping(micro_batch=8)),
    pt.FedAvg(
        sampling=pt.FixedSize(3),
        local=pt.DPSteps(pt.Gaussian(1.0, 1.1), epochs=2.0),
    ),
    pt.FedAvg(weights=pt.ByExamples(bound=100)),
    pt.FedAvg(release=pt.Release(pt.Gaussian(1.0, 2.0, secure=True), pt.AT_PARTY)),
    pt.FedAvg(
        sampling=pt.FixedSize(5),
        release=pt.Release(pt.Gaussian(1.0, 1.0), pt.SPLIT(honest_survivors=5)),
    ),
    pt.PATE(release=pt.Release(pt.LNMax(5.0), finish=pt.ARGMAX)),
    pt.MPCSGD(epochs=1),
    pt.MPCSGD(
        bounds=pt.Bounds(rows=1.0, weights=8, layers={"2": 50.0, "0": 9}, gradients={"2": 4.5})
    ),
]


@pytest.mark.parametrize("trainer", TRAINED, ids=[t.token for t in TRAINED])
def test_trainers_come_back_from_a_file(trainer: pt.SGD, tmp_path: Path) -> None:
    table = settings_of(trainer)
    study = Study(trainers={"it": {"trainer": trainer.token, **table}}, epsilons=(1.0,))
    write_study(study, tmp_path / "study.toml")
    again = read_study(tmp_path / "study.toml")
    assert again.make_trainers() == {"it": trainer}
    assert again.epsilons == (1.0,)


def test_bounds_of_layers_are_pairs_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    bounds = '{ kind = "Bounds", rows = 1.0, weights = 8, layers = [["body.0", 9], ["2", 50.0]] }'
    path.write_text(f"[trainers.mpc_sgd]\nbounds = {bounds}\n")
    (trainer,) = read_study(path).make_trainers().values()
    layers = {"body.0": 9, "2": 50.0}
    assert trainer == pt.MPCSGD(bounds=pt.Bounds(rows=1.0, weights=8, layers=layers))
    assert "bounds" not in settings_of(pt.MPCSGD())
    path.write_text(f"[trainers.mpc_sgd]\nbounds = {bounds.replace('8,', '-8,')}\n")
    with pytest.raises(ValueError, match="weights=-8 > 0"):
        read_study(path).make_trainers()


def test_attacks_come_back_with_the_settings_they_were_given(tmp_path: Path) -> None:
    given = ("loss_threshold", {"attack": "one_run", "guesses": 40, "confidence": 0.9})
    study = Study(trainers={"sgd": {}}, attacks=given, canaries=50, delta=1e-6)
    made = (pt.LossThreshold(), pt.OneRun(guesses=40, confidence=0.9, delta=1e-6))
    assert study.make_attacks() == made
    write_study(study, tmp_path / "study.toml")
    again = read_study(tmp_path / "study.toml")
    assert again.make_attacks() == made
    assert again.canaries == 50
    assert again.to_plain() == study.to_plain()
    with pytest.raises(ValueError, match="loss threshold"):
        Study(attacks=("loss_threshold", "loss_threshold")).make_attacks()
    own = Study(attacks=({"attack": "one_run", "delta": 1e-9},), canaries=100)
    assert own.make_attacks() == (pt.OneRun(delta=1e-9),)


def test_a_study_says_which_row_gaps_are_measured_from(tmp_path: Path) -> None:
    write_study(Study(trainers={"sgd": {}}, baseline="sgd"), tmp_path / "study.toml")
    assert read_study(tmp_path / "study.toml").baseline == "sgd"
    assert "baseline" not in Study(trainers={"sgd": {}}).to_plain()
    with pytest.raises(ValueError, match="baseline=3 to be the label of a trainer"):
        Study(trainers={"sgd": {}}, baseline=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("attack", "canaries", "match"),
    [
        ("one_run", 0, r"canaries=0 >= 100, the guesses of one_run.*--canaries"),
        ({"attack": "one_run", "guesses": 51}, 50, "canaries=50 >= 51"),
        ({"attack": "one_run", "guess": 5}, 50, "OneRun has no setting 'guess'; it has guesses"),
        (
            {"guesses": 5},
            50,
            "attack=None to be one of client_membership, gradient_norm, label_only",
        ),
    ],
)
def test_attacks_that_cannot_be_made_are_named(attack: object, canaries: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Study(attacks=(attack,), canaries=canaries).make_attacks()  # type: ignore[arg-type]


def test_a_study_plants_its_canaries_and_the_same_ones_again() -> None:
    _, data = pt.data.breast_cancer(parties=2, seed=0)
    assert Study().planted(data) is data
    first, again = (Study(canaries=60).planted(data) for _ in range(2))
    assert first.canaries is not None and len(first.canaries) == 60
    assert first.digest == again.digest != data.digest
    with pytest.raises(ValueError, match="number of training rows"):
        Study(canaries=100_000).planted(data)


@pytest.mark.parametrize(
    "wrong", [{"canaries": -1}, {"canaries": 2.5}, {"seeds": 0}, {"delta": 1.0}], ids=str
)
def test_numbers_of_a_study_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Study(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"epsilon=0\.0"):
        Study(epsilons=(1.0, 0.0))


def test_broken_files_are_explained(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    with pytest.raises(pt.DataError, match="Cannot read the study file"):
        read_study(path)
    path.write_text("data = ")
    with pytest.raises(pt.DataError, match="not valid TOML"):
        read_study(path)
    path.write_text("dataset = 'digits'")
    with pytest.raises(ValueError, match="no entry 'dataset'"):
        read_study(path)
    path.write_text("attacks = 'one_run'")
    with pytest.raises(ValueError, match="attacks='one_run' to be a list"):
        read_study(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds = 'x'", "Expected seeds='x' to be a whole number"),
        ("seeds = 0", "Expected seeds=0"),
        ("delta = 2.0", r"Expected delta=2\.0"),
        ("epsilons = [nan]", "Expected epsilon=nan > 0"),
        ("epsilons = 3.0", r"Expected epsilons=3\.0 to be a list of numbers"),
        ("attacks = 'loss_threshold'", "Expected attacks='loss_threshold' to be a list"),
        ("data = 3", "Expected data=3 to be the name of a data set"),
        ("trainers = 'sgd'", "Expected trainers='sgd' to be a table"),
    ],
)
def test_values_of_another_kind_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(text)
    with pytest.raises(ValueError, match=rf"study\.toml: {message}"):
        read_study(tmp_path / "study.toml")


def test_trainers_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Expected trainers=\{\} to name some of"):
        Study().make_trainers()
    with pytest.raises(ValueError, match=r"Expected trainers\.sgd='x' to be a table"):
        Study(trainers={"sgd": "x"}).make_trainers()  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="Expected release='x' to be a value such as Release"):
        make_trainer("dp_sgd", {"release": "x"})


def test_the_study_file_of_the_page_on_data_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    (text,) = re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "study.toml").write_text(text)
    lines = [
        f"{20 + n % 60},{'Rome' if n % 3 else 'Oslo'},{'yes' if n % 2 else 'no'}" for n in range(90)
    ]
    (tmp_path / "people.csv").write_text("\n".join(["age,city,bought", *lines]))
    monkeypatch.chdir(tmp_path)
    study = read_study(tmp_path / "study.toml")
    write_study(study, tmp_path / "again.toml")
    again = read_study(tmp_path / "again.toml")
    assert again.make_trainers() == {"sgd": pt.SGD(), "dp_sgd": pt.DPSGD()}
    _, data = pt.data.load(again.data, **again.data_options)
    assert (data.notes, data.public_rows) == ((), 60)
    assert 0 <= float(data.pooled().inputs.min()) <= float(data.pooled().inputs.max()) <= 1


def test_a_path_that_is_no_utf_8_loses_no_study(tmp_path: Path) -> None:
    write_study(Study(data="/data/\udcff.csv", trainers={"sgd": {}}), tmp_path / "study.toml")
    assert read_study(tmp_path / "study.toml").data == "/data/\\udcff.csv"


@pytest.mark.parametrize("entry", [3, ["loss_threshold"], None, 1.5])
def test_entries_of_attacks_that_are_no_names(entry: object) -> None:
    with pytest.raises(ValueError, match="attacks to hold names"):
        Study(attacks=(entry,))  # type: ignore[arg-type]


def test_observers_of_attacks_are_read_and_written_back(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(
        'attacks = ["rmia", { attack = "rmia", observer = "aggregator" }, '
        '{ attack = "loss_threshold", observer = ["party-1", "party-0"] }]\n[trainers.sgd]\n'
    )
    study = read_study(path)
    plain, seen, pooled = study.make_attacks()
    assert plain.observer == pt.PUBLIC and seen.observer == pt.AGGREGATOR
    assert pooled.observer == pt.coalition({"party-0", "party-1"})
    write_study(study, path)
    # As studies were before attacks had observers, where nobody named one.
    assert "observer" not in study.to_plain()["attacks"][0]
    assert read_study(path).make_attacks() == (plain, seen, pooled)
    path.write_text('attacks = [{ attack = "rmia", observer = "party-0" }]\n[trainers.sgd]\n')
    with pytest.raises(ValueError, match=r"observer='party-0' to be one of public.*or a list"):
        read_study(path).make_attacks()
