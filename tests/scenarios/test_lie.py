"""The lie of `bank_and_shop.py --cheat`: what it does, who notices, and what is told of it."""

import re
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

import privtrain as pt
from privtrain.core.extras import is_missing
from scenarios import bank_and_shop, lie
from scenarios.bank_and_shop import SHARED, Args
from tests.runtimes.forked import Forked

QUICK = Args(mesh="threads", epochs=1, cheat=True)


@pytest.fixture(autouse=True)
def no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRIVTRAIN_DATA", raising=False)


def weights(engine: Any) -> list[torch.Tensor]:
    trainer = replace(bank_and_shop.ways(QUICK)[SHARED], engine=engine)
    task, data = bank_and_shop.load(QUICK)
    fitted: Any = pt.fit(trainer, task, data, runtimes=pt.Runtimes(mesh=pt.Threads()))
    return [weight.detach() for weight in fitted.predictor.module.parameters()]


def test_one_weight_alone_is_another_one() -> None:
    (honest, bias), (read, changed) = weights(pt.Ring64()), weights(lie.lying(pt.Ring64()))
    assert float((read - honest).abs().max()) < 1e-3
    assert (changed - bias).tolist() == pytest.approx([0.0, lie.ADDED], abs=1e-3)


def test_the_authenticated_engine_names_step_and_kind_and_gives_no_weight() -> None:
    with pytest.raises(pt.TamperedShareError, match=r"in step \d+ \('weight share'\) do not fit"):
        weights(lie.lying(pt.SPDZ2k()))


@dataclass(frozen=True)
class Told:
    """What `--cheat` printed, by engine."""

    text: str

    def of(self, engine: str) -> str:
        (line,) = re.findall(rf"^{engine}: (.*)$", self.text, flags=re.MULTILINE)
        return str(line)


def told(args: Args, capsys: pytest.CaptureFixture[str]) -> Told:
    assert bank_and_shop.main(args) is None
    return Told(capsys.readouterr().out)


@pytest.mark.slow
def test_threads_tell_of_both_engines_with_a_dealer(capsys: pytest.CaptureFixture[str]) -> None:
    out = told(QUICK, capsys)
    assert out.of("ring64").startswith("accepted. A weight that was read is 4.000 from")
    assert out.of("crypten").startswith("not tried. ")
    assert out.of("spdz2k").startswith("caught, no weight was read. TamperedShareError: ")
    assert pt.SPDZ2k().caveats[0] in out.text


@pytest.mark.slow
def test_processes_tell_of_all_of_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bank_and_shop.MESHES, "processes", Forked())
    out = told(replace(QUICK, mesh="processes", epochs=5), capsys)
    for engine in ("ring64", "crypten") if not is_missing("crypten") else ("ring64",):
        accepted = r"accepted. A weight that was read is 4.000 .* and (\d+) of 117 test customers"
        found = re.match(accepted, out.of(engine))
        assert found is not None and int(found[1]) > 10
    assert "('weight share') do not fit their MACs" in out.of("spdz2k")
    assert "2^-40" in out.text and "rows or contributions of its own" in out.text
