"""The options of material that is made ahead."""

from pathlib import Path

import pytest

from privtrain.command.ahead import check_material, phase_of, with_material
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


def test_a_phase_changes_the_engine_and_nothing_else(tmp_path: Path) -> None:
    check_material(holds_rows=True, role="party", material=tmp_path, deal=True, bound=7)
    check_material(holds_rows=False, role="dealer", material=None, deal=True, bound=None)
    assert [phase_of(deal=True, material=None), phase_of(deal=False, material=tmp_path)] == [
        "offline",
        "online",
    ]
    assert phase_of(deal=False, material=None) == ""
    trainer = MPCSGD(epochs=2)
    more = {"study": "5f", "folder": tmp_path, "tell": print}
    offline = with_material(trainer, "offline", bound=7, **more)  # type: ignore[arg-type]
    online = with_material(trainer, "online", bound=None, **more)  # type: ignore[arg-type]
    assert str(offline) == str(online) == str(trainer)
    for made, phase in (
        (offline, Offline(study="5f", folder=tmp_path, bound=7, tell=print)),
        (online, Online(study="5f", folder=tmp_path)),
    ):
        assert made == MPCSGD(epochs=2, engine=Ring64(material=phase))


def test_an_engine_without_material_is_refused(tmp_path: Path) -> None:
    trainer = MPCSGD(engine=CrypTen())
    with pytest.raises(
        UnsupportedError, match=r"engine=CrypTen.* no material .*Leave out --material.*Ring64"
    ):
        with_material(trainer, "online", study="5f", folder=tmp_path, bound=None, tell=print)
