"""Shared by laws that look at hundreds of whole fits."""

import pytest

from privtrain.core.task import Rows
from privtrain.gradients.alone import RowTrial


@pytest.fixture
def tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many fits of one model the first tries whether its rows are alone; the others believe it.

    The trial costs more than a small fit and draws nothing that is released.
    """
    trial, told = RowTrial.on, {}

    def once(self: RowTrial, rows: Rows, *, public: bool) -> None:
        if public not in told:
            trial(self, rows, public=public)
            told[public] = self.done, self.assumption
        self.done, self.assumption = told[public]

    monkeypatch.setattr(RowTrial, "on", once)
