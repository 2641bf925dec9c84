"""What users write in files of their own, for the tests: the text of such a file, and its use."""

import os
import subprocess
import sys
from pathlib import Path

TRAINER = '''
from dataclasses import dataclass
from typing import ClassVar

import privtrain as pt


@dataclass(frozen=True, kw_only=True)
class MyTrainer(pt.SGD):
    """Trains as SGD does."""

    token: ClassVar[str] = "mine"
'''
ATTACK = '''
from dataclasses import dataclass

import privtrain as pt


@dataclass(frozen=True, kw_only=True)
class MyAttack(pt.LossThreshold):
    """Attacks as LossThreshold does."""
'''
MECHANISM = '''
from dataclasses import dataclass

import privtrain as pt


@dataclass(frozen=True)
class MyMechanism(pt.Gaussian):
    """Draws noise as Gaussian does."""
'''
EVERYTHING = TRAINER + ATTACK + MECHANISM


def study(trainer: str, attack: str, mechanism: str) -> str:
    """A study file with a trainer of one's own, one with a mechanism, and an attack."""
    return f"""
data = "breast_cancer"
attacks = ["{attack}"]
runtime = "in-process"
data_options = {{ parties = 2 }}
[trainers.own]
trainer = "{trainer}"
epochs = 1
[trainers.private]
trainer = "fedavg"
rounds = 1
[trainers.private.release]
kind = "Release"
mechanism = {{ kind = "{mechanism}", clipping_norm = 1.0, noise_multiplier = 2.0 }}
"""


def privtrain(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """The command line in a fresh process that finds what lies in a folder."""
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "privtrain", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
    )
