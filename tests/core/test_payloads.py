"""Kept tensors are what was sent, wherever they lie, and leave nothing behind."""

import copy
import pickle
import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from privtrain.core.errors import DataError, PrivtrainError
from privtrain.core.observers import AGGREGATOR
from privtrain.core.payloads import Filed, PayloadStore, TensorFile, Wanted
from tests.disk import little_space

ALL = (Wanted(None),)
SENT = [
    torch.randn(3, 4),
    torch.tensor(2.5, dtype=torch.float64),
    torch.zeros(0, 7),
    torch.tensor([True, False]),
    torch.tensor([float("nan"), -0.0, float("inf")]).bfloat16(),
    torch.arange(12, dtype=torch.int64).view(3, 4).t(),
    torch.randn(2, dtype=torch.complex64).conj(),
]


def equal_to_the_bit(one: Tensor, other: Tensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    flat = [part.resolve_conj().contiguous().reshape(-1) for part in (one, other)]
    return torch.equal(*(part.view(torch.uint8) for part in flat))


@pytest.mark.parametrize("memory", [0, 60, 10_000])
def test_what_is_kept_is_what_was_sent(memory: int, tmp_path: Path) -> None:
    store = PayloadStore(ALL, memory, tmp_path)
    kept = [store.keep(tensor) for tensor in SENT]
    for sent, each in zip(SENT, kept, strict=True):
        assert equal_to_the_bit(each.clone(), sent)
        assert equal_to_the_bit(pickle.loads(pickle.dumps(each)).clone(), sent)
    total = sum(tensor.nelement() * tensor.element_size() for tensor in SENT)
    assert store.used <= memory and store.used + store.on_disk == total
    assert [isinstance(each, Filed) for each in kept].count(True) == {0: 6, 60: 3}.get(memory, 0)
    # Without a name: nothing is left wherever the process ends.
    assert list(tmp_path.iterdir()) == []


def test_each_reader_has_a_copy_of_its_own() -> None:
    for memory in (0, 100):
        sent = torch.ones(3)
        kept = PayloadStore(ALL, memory).keep(sent)
        sent.zero_()
        kept.clone().fill_(7.0)
        assert kept.clone().tolist() == [1.0, 1.0, 1.0]


def test_a_copy_of_a_store_holds_nothing_of_it() -> None:
    store = PayloadStore((Wanted(AGGREGATOR, ("update",)),), 5)
    store.keep(torch.ones(9))
    for other in (copy.deepcopy(store), pickle.loads(pickle.dumps(store))):
        assert (other.wanted, other.memory, other.folder) == (store.wanted, 5, None)
        assert (store.on_disk, other.on_disk) == (36, 0)


def test_a_full_disk_is_named_with_the_way_out(tmp_path: Path) -> None:
    store = PayloadStore(ALL, 0, tmp_path)
    with (
        little_space(10_000),
        pytest.raises(PrivtrainError, match=r"is full.*the 0 bytes.*Free some space.*folder="),
    ):
        store.keep(torch.zeros(10_000))
    gone = PayloadStore(ALL, 0, tmp_path / "gone")
    with pytest.raises(PrivtrainError, match=r"gone cannot be written.*folder="):
        gone.keep(torch.zeros(2))


def test_a_file_that_was_cut_is_named() -> None:
    with tempfile.TemporaryFile() as file:
        kept = TensorFile(file).add(torch.zeros(4))
        file.truncate(12)
        with pytest.raises(DataError, match="torn"):
            kept.clone()
