"""An attack that keeps what it was handed."""

from dataclasses import dataclass, field

from privtrain.core.observers import PUBLIC, Observer
from privtrain.core.result import Leakage, Target


@dataclass
class Looking:
    """Keeps what it was handed."""

    observer: Observer = PUBLIC
    name: str = "looking"
    seen: list[tuple[Target, int]] = field(default_factory=list)

    def run(self, target: Target, *, seed: int) -> Leakage:
        self.seen.append((target, seed))
        return Leakage(attack=self.name, observer=self.observer.name, metrics={})
