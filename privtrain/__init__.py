"""privtrain: train one model under several privacy techniques and compare what each promises.

```python
import privtrain as pt

task, data = pt.data.digits(parties=20, partition=pt.data.Dirichlet(0.5), seed=0)
comparison = pt.compare({"pooled": pt.SGD(epochs=20), "FedAvg": pt.FedAvg(rounds=30)}, task, data)
```

Names are loaded on first use, so that importing the package is fast. The imports below are their
only list: `__all__`, and what a study file may name, are read from it. "X as X" tells type checkers
that a name is meant for others.
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from privtrain import data as data
    from privtrain.accounting.epsilon import epsilon as epsilon
    from privtrain.accounting.epsilon import epsilon_bracket as epsilon_bracket
    from privtrain.accounting.epsilon import group_epsilon as group_epsilon
    from privtrain.accounting.filter import RdpFilter as RdpFilter
    from privtrain.accounting.renyi import RdpCurve as RdpCurve
    from privtrain.accounting.selection import RandomTrials as RandomTrials
    from privtrain.attacks.client_membership import ClientMembership as ClientMembership
    from privtrain.attacks.gradient_norm import GradientNorm as GradientNorm
    from privtrain.attacks.label_only import LabelOnly as LabelOnly
    from privtrain.attacks.lira import LiRA as LiRA
    from privtrain.attacks.loss_gain import LossGain as LossGain
    from privtrain.attacks.membership import LossThreshold as LossThreshold
    from privtrain.attacks.model_sequence import ModelSequence as ModelSequence
    from privtrain.attacks.one_run.attack import OneRun as OneRun
    from privtrain.attacks.population import PopulationLoss as PopulationLoss
    from privtrain.attacks.rmia import RMIA as RMIA
    from privtrain.attacks.row_span import RowSpan as RowSpan
    from privtrain.core.errors import BudgetExceededError as BudgetExceededError
    from privtrain.core.errors import DataError as DataError
    from privtrain.core.errors import PartyLostError as PartyLostError
    from privtrain.core.errors import PrivacyError as PrivacyError
    from privtrain.core.errors import PrivtrainError as PrivtrainError
    from privtrain.core.errors import ProtocolError as ProtocolError
    from privtrain.core.errors import TamperedShareError as TamperedShareError
    from privtrain.core.errors import UnsoundReleaseError as UnsoundReleaseError
    from privtrain.core.errors import UnsupportedError as UnsupportedError
    from privtrain.core.measures import Metric as Metric
    from privtrain.core.metrics import accuracy as accuracy
    from privtrain.core.metrics import auc as auc
    from privtrain.core.metrics import balanced_accuracy as balanced_accuracy
    from privtrain.core.metrics import r2 as r2
    from privtrain.core.metrics import rmse as rmse
    from privtrain.core.observers import AGGREGATOR as AGGREGATOR
    from privtrain.core.observers import CURATOR as CURATOR
    from privtrain.core.observers import DEALER as DEALER
    from privtrain.core.observers import PARTICIPANT as PARTICIPANT
    from privtrain.core.observers import PUBLIC as PUBLIC
    from privtrain.core.observers import QUERIER as QUERIER
    from privtrain.core.observers import Observer as Observer
    from privtrain.core.observers import coalition as coalition
    from privtrain.core.result import Comparison as Comparison
    from privtrain.core.result import Leakage as Leakage
    from privtrain.core.result import TrainResult as TrainResult
    from privtrain.core.runtime import Runtimes as Runtimes
    from privtrain.core.seeding import SEEDED as SEEDED
    from privtrain.core.seeding import SYSTEM as SYSTEM
    from privtrain.core.statement import ADD_REMOVE as ADD_REMOVE
    from privtrain.core.statement import REPLACE_ONE as REPLACE_ONE
    from privtrain.core.statement import ZERO_OUT as ZERO_OUT
    from privtrain.core.statement import Budget as Budget
    from privtrain.core.statement import Guarantee as Guarantee
    from privtrain.core.statement import PrivacyStatement as PrivacyStatement
    from privtrain.core.task import COLUMNS as COLUMNS
    from privtrain.core.task import ROWS as ROWS
    from privtrain.core.task import Canaries as Canaries
    from privtrain.core.task import FederatedData as FederatedData
    from privtrain.core.task import Rows as Rows
    from privtrain.core.task import Task as Task
    from privtrain.core.transcript import Transcript as Transcript
    from privtrain.gradients.bookkeeping.engine import BookKeeping as BookKeeping
    from privtrain.gradients.opacus import Opacus as Opacus
    from privtrain.ledgers.study import StudyLedger as StudyLedger
    from privtrain.mechanisms.banded import BandedMatrix as BandedMatrix
    from privtrain.mechanisms.clipping import AutomaticClipping as AutomaticClipping
    from privtrain.mechanisms.clipping import FlatClipping as FlatClipping
    from privtrain.mechanisms.clipping import PerLayerClipping as PerLayerClipping
    from privtrain.mechanisms.gaussian import Gaussian as Gaussian
    from privtrain.mechanisms.gaussian import Laplace as Laplace
    from privtrain.mechanisms.mechanism import Exact as Exact
    from privtrain.mechanisms.published import published_epsilon as published_epsilon
    from privtrain.mechanisms.votes import GNMax as GNMax
    from privtrain.mechanisms.votes import LNMax as LNMax
    from privtrain.mpc.bounds import Bounds as Bounds
    from privtrain.mpc.crypten.engine import CrypTen as CrypTen
    from privtrain.mpc.measuring import measured_ranges as measured_ranges
    from privtrain.mpc.ring64.engine import Ring64 as Ring64
    from privtrain.mpc.spdz2k.engine import SPDZ2k as SPDZ2k
    from privtrain.release.checked import ConfidentGNMax as ConfidentGNMax
    from privtrain.release.checked import InteractiveGNMax as InteractiveGNMax
    from privtrain.release.door import Release as Release
    from privtrain.release.finish import ARGMAX as ARGMAX
    from privtrain.release.finish import IDENTITY as IDENTITY
    from privtrain.release.finish import Threshold as Threshold
    from privtrain.release.placement import AT_AGGREGATOR as AT_AGGREGATOR
    from privtrain.release.placement import AT_PARTY as AT_PARTY
    from privtrain.release.placement import SPLIT as SPLIT
    from privtrain.release.plain import PlainSum as PlainSum
    from privtrain.release.planning import plan as plan
    from privtrain.release.reduce import MAX as MAX
    from privtrain.release.shared import SharedSum as SharedSum
    from privtrain.report.files import load as load
    from privtrain.report.risk_page import save_risks as save_risks
    from privtrain.report.risks import RecordRisks as RecordRisks
    from privtrain.runs.auditing import audit as audit
    from privtrain.runs.auditing_trainers import audit_trainer as audit_trainer
    from privtrain.runs.calibrating import calibrate as calibrate
    from privtrain.runs.comparing import compare as compare
    from privtrain.runs.evaluating import Evaluation as Evaluation
    from privtrain.runs.evaluating import evaluate as evaluate
    from privtrain.runs.external import External as External
    from privtrain.runs.finished import audit_comparison as audit_comparison
    from privtrain.runs.fitting import fit as fit
    from privtrain.runs.keeping import load_model as load_model
    from privtrain.runs.keeping import save_model as save_model
    from privtrain.runs.risks import record_risks as record_risks
    from privtrain.runs.saving import save as save
    from privtrain.runs.scoring import PrivateRows as PrivateRows
    from privtrain.runs.scoring import PublicRows as PublicRows
    from privtrain.runs.tuning import Tuned as Tuned
    from privtrain.runs.tuning import tune as tune
    from privtrain.runtimes.flower.grid import FlowerGrid as FlowerGrid
    from privtrain.runtimes.flower.grid import FlowerRay as FlowerRay
    from privtrain.runtimes.in_process import InProcess as InProcess
    from privtrain.runtimes.processes.mesh import Processes as Processes
    from privtrain.runtimes.threads import Threads as Threads
    from privtrain.sampling.assignment import CONTENTS as CONTENTS
    from privtrain.sampling.assignment import USERS as USERS
    from privtrain.sampling.batches import FixedSizeBatches as FixedSizeBatches
    from privtrain.sampling.batches import PoissonBatches as PoissonBatches
    from privtrain.sampling.batches import ShuffledEpochs as ShuffledEpochs
    from privtrain.sampling.batches import TruncatedPoissonBatches as TruncatedPoissonBatches
    from privtrain.sampling.cyclic import CyclicPoisson as CyclicPoisson
    from privtrain.sampling.cyclic import FixedOrder as FixedOrder
    from privtrain.sampling.sampling import Everyone as Everyone
    from privtrain.sampling.sampling import FixedSize as FixedSize
    from privtrain.sampling.sampling import Poisson as Poisson
    from privtrain.steps.augmentation import Affine as Affine
    from privtrain.steps.consistency import Consistency as Consistency
    from privtrain.steps.features import Scattering as Scattering
    from privtrain.steps.plain import PlainSteps as PlainSteps
    from privtrain.steps.private import DPSteps as DPSteps
    from privtrain.steps.ridge import Ridge as Ridge
    from privtrain.steps.semi_supervised import SemiSupervised as SemiSupervised
    from privtrain.steps.together import Together as Together
    from privtrain.steps.vote_cache import VoteCache as VoteCache
    from privtrain.steps.voting import CoordinatedDraw as CoordinatedDraw
    from privtrain.steps.voting import TopScore as TopScore
    from privtrain.steps.weights import ByExamples as ByExamples
    from privtrain.steps.weights import Uniform as Uniform
    from privtrain.trainers.dp_sgd import DPSGD as DPSGD
    from privtrain.trainers.fedavg import FedAvg as FedAvg
    from privtrain.trainers.mpc_sgd import MPCSGD as MPCSGD
    from privtrain.trainers.pate import PATE as PATE
    from privtrain.trainers.sgd import SGD as SGD


def _homes() -> dict[str, str]:
    """Public name to the module that it comes from, read from the imports above: a millisecond."""
    tree = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


_HOME_OF = _homes()
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    """Loads a public name on first use."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'privtrain' has no attribute {name!r}")
    home = _HOME_OF[name]
    module = f"{home}.{name}"
    value = import_module(module) if home == __name__ else getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return __all__
