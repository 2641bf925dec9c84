"""Single settings from the command line: by their types, with the nearest name, never executed."""

from typing import Any

import pytest

import privtrain as pt
from privtrain.command.overrides import changed_trainer, overridden
from privtrain.command.study_file import Study
from privtrain.command.tables import default_tables

STUDY = Study(
    trainers={
        **default_tables(("sgd", "dp_sgd", "fedavg", "pate")),
        "FedAvg 1.5": {"trainer": "fedavg", "rounds": 2},
    },
    attacks=("loss_threshold", {"attack": "one_run", "guesses": 20}),
    canaries=200,
)


def made(*given: str) -> dict[str, Any]:
    return dict(overridden(STUDY, given).make_trainers())


NOISE = pt.Gaussian(0.5, 1.0)

CHANGES: list[tuple[str, list[str], object]] = [
    ("sgd", ["epochs=5"], pt.SGD(epochs=5)),
    ("sgd", ["batch_size=none", "learning_rate=1e-2"], pt.SGD(batch_size=None, learning_rate=0.01)),
    ("sgd", ["optimizer=Adam"], pt.SGD(optimizer="Adam")),
    ("sgd", ["epochs=5", "epochs=6"], pt.SGD(epochs=6)),
    ("dp_sgd", ["epochs=5"], pt.DPSGD(epochs=5.0)),
    ("dp_sgd", ["sampling_rate=0.1"], pt.DPSGD(sampling_rate=0.1)),
    ("dp_sgd", ["release.mechanism.clipping_norm=0.5"], pt.DPSGD(release=pt.Release(NOISE))),
    ("dp_sgd", ["release.mechanism=Gaussian(0.5, 1)"], pt.DPSGD(release=pt.Release(NOISE))),
    ("dp_sgd", ["release=Release(Gaussian(0.5, 1.0))"], pt.DPSGD(release=pt.Release(NOISE))),
    (
        "dp_sgd",
        ["release.mechanism.secure=true", "release.mechanism.clipping_norm=2"],
        pt.DPSGD(release=pt.Release(pt.Gaussian(2.0, 1.0, secure=True))),
    ),
    (
        "dp_sgd",
        ["gradients.clipping=PerLayerClipping((1.0, 2.0))"],
        pt.DPSGD(gradients=pt.BookKeeping(clipping=pt.PerLayerClipping((1.0, 2.0)))),
    ),
    ("dp_sgd", ["sampling=ShuffledEpochs"], pt.DPSGD(sampling=pt.ShuffledEpochs())),
    ("fedavg", ["sampling=FixedSize(5)"], pt.FedAvg(sampling=pt.FixedSize(5))),
    ("fedavg", ["sampling=FixedSize(size=5)"], pt.FedAvg(sampling=pt.FixedSize(5))),
    ("fedavg", ["local.epochs=1"], pt.FedAvg(local=pt.PlainSteps(epochs=1, learning_rate=0.2))),
    (
        "fedavg",
        ["local=DPSteps(Gaussian(1.0, 1.1), sampling_rate=0.5)"],
        pt.FedAvg(local=pt.DPSteps(pt.Gaussian(1.0, 1.1), sampling_rate=0.5)),
    ),
    (
        "fedavg",
        ["release=Release(Gaussian(1.0, 2.0), SPLIT(honest_survivors=3))"],
        pt.FedAvg(release=pt.Release(pt.Gaussian(1.0, 2.0), pt.SPLIT(honest_survivors=3))),
    ),
    (
        "fedavg",
        ["release.noise_at=AT_PARTY", "release.mechanism=Gaussian(1.0, 2.0)"],
        pt.FedAvg(release=pt.Release(pt.Gaussian(1.0, 2.0), pt.AT_PARTY)),
    ),
    (
        "pate",
        ["consensus=Release(GNMax(40), reduce=MAX, finish=Threshold(60))"],
        pt.PATE(consensus=pt.Release(pt.GNMax(40), reduce=pt.MAX, finish=pt.Threshold(60))),
    ),
    ("FedAvg 1.5", ["rounds=3"], pt.FedAvg(rounds=3)),
]


@pytest.mark.parametrize(("label", "given", "expected"), CHANGES)
def test_a_setting_is_changed_and_nothing_else(
    label: str, given: list[str], expected: object
) -> None:
    before, after = STUDY.make_trainers(), made(*(f"{label}.{each}" for each in given))
    assert after.pop(label) == expected
    before.pop(label)
    assert after == before
    # For `fit`, which has one trainer, without its name.
    start = STUDY.make_trainers()[label]
    assert changed_trainer(start, given) == expected


def test_what_was_set_is_what_a_study_file_repeats() -> None:
    changed = overridden(STUDY, ["dp_sgd.epochs=5", "one_run.guesses=150"])
    again = Study(**{k: v for k, v in changed.to_plain().items() if k in ("trainers", "canaries")})
    assert again.make_trainers()["dp_sgd"] == pt.DPSGD(epochs=5.0)
    assert changed.to_plain()["attacks"][1]["guesses"] == 150
    assert changed.make_attacks()[0] == STUDY.make_attacks()[0]
    assert overridden(STUDY, []) is STUDY


REFUSED = [
    ("sgd.epoch=5", "sgd has no setting 'epoch'; .*Did you mean 'epochs'"),
    ("sdg.epochs=5", "begin with one of sgd, dp_sgd, .*Did you mean 'sgd'"),
    ("epochs=5", "begin with one of sgd, dp_sgd"),
    ("sgd.epochs", "to look like --set dp_sgd.epochs=5"),
    ("sgd.=5", "to look like"),
    ("=5", "to look like"),
    ("sgd.epochs=five", "sgd.epochs=five to be a whole number"),
    ("sgd.epochs=5.5", "sgd.epochs=5.5 to be a whole number"),
    ("sgd.batch_size=some", "sgd.batch_size=some to be a whole number, or none"),
    ("dp_sgd.epochs=many", "dp_sgd.epochs=many to be a number"),
    ("dp_sgd.epochs=-1", "Expected epochs=-1.0 > 0"),
    ("dp_sgd.epochs=nan", "Expected epochs=nan > 0"),
    ("dp_sgd.release.mechanism.secure=maybe", "secure=maybe to be true or false"),
    ("dp_sgd.release.mechanism.clip=1", "has no setting 'clip'; it has clipping_norm"),
    ("dp_sgd.release.mechanism=Gausian(1, 1)", "Did you mean 'Gaussian'"),
    ("dp_sgd.release.mechanism=Gaussian(1, 1, 1, 1)", "takes 3 settings by place"),
    ("pate.release=ConfidentGNMax(60, 20, 10)", "by name it takes threshold, sigma_check"),
    ("pate.workers=2", r"no study file holds it. Give it in Python: PATE\(workers="),
    ("pate.votes=VoteCache('v')", r"Give it in Python: PATE\(votes="),
    ("dp_sgd.release.mechanism=Gaussian(1)", "Gaussian cannot be made of .*needs noise_multiplier"),
    ("dp_sgd.release=Gaussian", "Gaussian cannot be made of nothing: it needs clipping_norm and"),
    ("fedavg.sampling=FixedSize", r"it needs size, as in FixedSize\(size=\.\.\.\)"),
    ("dp_sgd.release=Gaussian(1, 1)", "Expected release="),
    ("dp_sgd.release=", "to be a value such as"),
    ("sgd.optimizer=adam", "Did you mean 'Adam'"),
    ("fedavg.sampling=10", "Expected sampling=10"),
    ("fedavg.server_optimizer=adam", "to be a value such as"),
    ("pate.consensus.finish=Threshold(3)", "pate.consensus=None has no setting 'finish'"),
    ("one_run.gueses=5", "one_run has no setting 'gueses'; .*Did you mean 'guesses'"),
    ("fedavg.release=__import__('os').getcwd()", "to be a value such as"),
    ("fedavg.release=Release(open('x'))", "to be a value such as"),
    ("fedavg.sampling=FixedSize(*[5])", "to be a value such as"),
    ("fedavg.sampling=fit(1)", "to be a value such as"),
]


@pytest.mark.parametrize(("given", "answer"), REFUSED)
def test_what_cannot_be_set_is_refused_with_the_way_out(given: str, answer: str) -> None:
    with pytest.raises(ValueError, match=answer):
        made(given)


def test_a_part_is_set_whole_or_by_its_settings() -> None:
    whole, one = "dp_sgd.release.mechanism=Gaussian(1, 2)", "dp_sgd.release.mechanism.secure=true"
    for given in ((whole, one), (one, whole)):
        with pytest.raises(ValueError, match="Leave one out"):
            made(*given)


def test_for_fit_the_trainer_is_not_named() -> None:
    with pytest.raises(ValueError, match=r"one trainer: --set epochs=5\.$"):
        changed_trainer(pt.DPSGD(), ["dp_sgd.epochs=5"])
    with pytest.raises(ValueError, match=r"--set epochs=5\. It trains dp_sgd, not sgd"):
        changed_trainer(pt.DPSGD(), ["sgd.epochs=5"])
    with pytest.raises(ValueError, match=r"without 'strong 1\.5'.*: --set epochs=5\.$"):
        changed_trainer(pt.DPSGD(), ["strong 1.5.epochs=5"], "strong 1.5")
    with pytest.raises(ValueError, match="to look like --set epochs=5"):
        changed_trainer(pt.DPSGD(), ["epochs"])


@pytest.mark.parametrize(
    ("text", "observer"),
    [("aggregator", pt.AGGREGATOR), ("[party-1,party-0]", pt.coalition({"party-0", "party-1"}))],
)
def test_an_attack_changes_its_place(text: str, observer: pt.Observer) -> None:
    study = Study(trainers={"sgd": {}}, attacks=("rmia",))
    (attack,) = overridden(study, [f"rmia.observer={text}"]).make_attacks()
    assert attack == pt.RMIA(observer=observer)
    with pytest.raises(ValueError, match="Did you mean 'aggregator'"):
        overridden(study, ["rmia.observer=agregator"])
