import copy
import pickle
import threading
from dataclasses import dataclass, field

import pytest

from privtrain.core.locks import Lock


@dataclass
class Counted:
    """A value with a lock, as ledgers are."""

    number: int = 0
    _lock: Lock = field(default_factory=Lock, init=False, repr=False, compare=False)


def test_one_thread_at_a_time_and_the_same_one_again() -> None:
    lock, inside, entered = Lock(), threading.Event(), threading.Event()

    def enter() -> None:
        inside.set()
        with lock:
            entered.set()

    with lock, lock:
        other = threading.Thread(target=enter)
        other.start()
        assert inside.wait(5)
        assert not entered.wait(0.1)
    assert entered.wait(5)
    other.join()


def test_an_error_opens_it() -> None:
    lock = Lock()
    with pytest.raises(KeyError), lock:
        raise KeyError
    done = threading.Thread(target=lock.__enter__)
    done.start()
    done.join(5)
    assert not done.is_alive()


def test_values_with_a_lock_are_compared_copied_and_pickled() -> None:
    value = Counted(3)
    with value._lock:  # held here, and open in every copy
        for other in (
            copy.copy(value),
            copy.deepcopy(value),
            pickle.loads(pickle.dumps(value)),
        ):
            assert other == value
            assert repr(other) == "Counted(number=3)"
    deep = copy.deepcopy(value)
    assert deep._lock is not value._lock
