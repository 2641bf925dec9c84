"""The options of material that is made ahead."""

from pathlib import Path

import pytest

from privtrain.command.ahead import Ahead
from privtrain.command.party import PartyArgs, run_party
from privtrain.core.errors import UnsupportedError
from privtrain.mpc.crypten.engine import CrypTen
from privtrain.mpc.ring64.ahead import Offline, Online
from privtrain.mpc.ring64.engine import Ring64
from privtrain.trainers.mpc_sgd import MPCSGD


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"deal": True}, "Expected --material FOLDER with --deal"),
        (
            {"role": "dealer", "deal": True, "material": Path("m")},
            "with --role dealer, which keeps",
        ),
        ({"role": "dealer", "deal": True, "material_bound": 5}, "--material-bound=5 with --deal"),
        ({"material": Path("m"), "material_bound": 5}, "--material-bound=5 with --deal"),
        ({"material": Path("m"), "deal": True, "material_bound": 5}, "bound=5 to be 16777216"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: dict[str, object], words: str, tmp_path: Path
) -> None:
    rank = None if "role" in options else 0
    args = PartyArgs(
        study=tmp_path / "study.toml",
        rank=rank,
        world_size=2,
        rendezvous="tcp://127.0.0.1:1",
        **options,  # type: ignore[arg-type]
    )
    with pytest.raises(ValueError, match=words):
        run_party(args)


@pytest.mark.parametrize("deal", [True, False])
def test_checkpoints_beside_material_are_refused(deal: bool, tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text('task = "tests.command.study_of_parties:make"\ncheckpoints = "kept"\n')
    material = tmp_path / "material"
    args = PartyArgs(
        study=path,
        rank=0,
        world_size=2,
        rendezvous="tcp://127.0.0.1:1",
        material=material,
        deal=deal,
    )
    with pytest.raises(ValueError, match="no checkpoints='kept' with material made ahead"):
        run_party(args)
    assert not material.exists() and not (tmp_path / "kept").exists()


def test_a_phase_changes_the_engine_and_nothing_else(tmp_path: Path) -> None:
    offline, online = Ahead(folder=tmp_path, deal=True, bound=2**24), Ahead(folder=tmp_path)
    offline.check("party", holds_rows=True)
    Ahead(deal=True).check("dealer", holds_rows=False)
    assert [offline.phase, Ahead(deal=True).phase, online.phase] == ["offline", "offline", "online"]
    assert Ahead().phase == ""
    trainer = MPCSGD(epochs=2)
    for ahead, phase in (
        (offline, Offline(study="5f", folder=tmp_path, bound=2**24, tell=print)),
        (online, Online(study="5f", folder=tmp_path)),
    ):
        made = ahead.applied(trainer, study="5f", tell=print)
        assert made == MPCSGD(epochs=2, engine=Ring64(material=phase))
        assert str(made) == str(trainer)
    with pytest.raises(ValueError, match="bound=0"):
        Ahead(folder=tmp_path, deal=True, bound=0).applied(trainer, study="5f", tell=print)


def test_an_engine_without_material_is_refused(tmp_path: Path) -> None:
    trainer = MPCSGD(engine=CrypTen())
    refused = r"engine=CrypTen.* no material .*Leave out --material.*Ring64"
    with pytest.raises(UnsupportedError, match=refused):
        Ahead(folder=tmp_path).applied(trainer, study="5f", tell=print)
