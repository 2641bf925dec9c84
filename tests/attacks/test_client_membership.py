"""A client's score is the mean of its rows', wherever the client stands."""

import pickle
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch

from privtrain.attacks.attack import (
    ClientAttack,
    MembershipAttack,
    Reconstruction,
    check_attacks,
)
from privtrain.attacks.client_membership import ClientMembership
from privtrain.attacks.membership import LossThreshold
from privtrain.attacks.rmia import RMIA
from privtrain.core.errors import UnsupportedError
from privtrain.core.observers import PUBLIC, Observer
from privtrain.core.result import Target
from privtrain.core.task import Rows, concatenate
from tests.contracts.attack import SIDES, ByHeart, Lending, rows, target

CLIENTS = [rows(seed, 4) for seed in range(6)]


def seen(clients: list[Rows]) -> Target:
    known = target(PUBLIC, ByHeart(SIDES[0]))
    return replace(known, shadows=Lending(concatenate(clients)))


def test_a_score_is_the_mean_of_the_rows() -> None:
    together = concatenate(CLIENTS)
    for attack, plain in (
        (ClientMembership(shadows=8), RMIA(shadows=8)),
        (ClientMembership(shadows=0), LossThreshold()),
    ):
        scores = np.asarray(plain.score(seen(CLIENTS), together, seed=0)).reshape(6, 4)
        found = attack.score_clients(seen(CLIENTS), CLIENTS, seed=0)
        np.testing.assert_allclose(found, scores.mean(axis=1))


def test_a_score_follows_the_client_and_not_its_place() -> None:
    attack = ClientMembership(shadows=8)
    there = attack.score_clients(seen(CLIENTS), CLIENTS, seed=0)
    back = attack.score_clients(seen(CLIENTS[::-1]), CLIENTS[::-1], seed=0)
    np.testing.assert_allclose(there, back[::-1], rtol=1e-6)
    assert torch.equal(CLIENTS[2].inputs, rows(2, 4).inputs)


def test_it_is_an_attack_on_clients_and_no_other() -> None:
    attack = ClientMembership(shadows=0, rows_each=5)
    assert check_attacks([attack]) == (attack,) == (pickle.loads(pickle.dumps(attack)),)
    assert isinstance(attack, ClientAttack)
    assert not isinstance(attack, MembershipAttack | Reconstruction)
    with pytest.raises(FrozenInstanceError):
        attack.limit = 3  # type: ignore[misc]  # must not work
    assert attack.name != ClientMembership().name


def test_what_it_cannot_use_is_refused() -> None:
    with pytest.raises(ValueError, match="somebody else"):
        ClientMembership().score_clients(target(Observer("somebody else")), CLIENTS, seed=0)
    with pytest.raises(UnsupportedError, match="needs shadow models"):
        ClientMembership().score_clients(target(PUBLIC), CLIENTS, seed=0)
    for name, value in (("rows_each", 0), ("limit", 0), ("batch_size", 0), ("shadows", 3)):
        with pytest.raises(ValueError, match=name):
            ClientMembership(**{name: value})  # type: ignore[arg-type]
