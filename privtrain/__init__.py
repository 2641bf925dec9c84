"""privtrain: train one model under several privacy techniques and compare what each promises.

```python
import privtrain as pt

task, data = pt.data.digits(parties=20, partition=pt.data.Dirichlet(0.5), seed=0)
comparison = pt.compare({"pooled": pt.SGD(epochs=20), "FedAvg": pt.FedAvg(rounds=30)}, task, data)
```

Names are loaded on first use, so that importing the package is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from privtrain import data
    from privtrain.aggregation.finish import ARGMAX, IDENTITY, Threshold
    from privtrain.aggregation.plain import PlainSum
    from privtrain.aggregation.shared import SharedSum
    from privtrain.attacks.membership import LossThreshold
    from privtrain.attacks.one_run import OneRun
    from privtrain.auditing import audit
    from privtrain.comparison import compare
    from privtrain.core.errors import (
        BudgetExceededError,
        DataError,
        PartyLostError,
        PrivacyError,
        PrivtrainError,
        ProtocolError,
        TamperedShareError,
        UnsoundReleaseError,
        UnsupportedError,
    )
    from privtrain.core.observers import (
        AGGREGATOR,
        DEALER,
        PARTICIPANT,
        PUBLIC,
        QUERIER,
        Observer,
        coalition,
    )
    from privtrain.core.result import Comparison, Leakage, TrainResult
    from privtrain.core.runtime import Runtimes
    from privtrain.core.seeding import SEEDED, SYSTEM
    from privtrain.core.statement import (
        ADD_REMOVE,
        REPLACE_ONE,
        ZERO_OUT,
        Budget,
        Guarantee,
        PrivacyStatement,
    )
    from privtrain.core.task import COLUMNS, ROWS, Canaries, FederatedData, Rows, Task
    from privtrain.core.transcript import Transcript
    from privtrain.mpc.crypten import CrypTen
    from privtrain.privacy.accounting import RdpCurve, epsilon, epsilon_bracket, group_epsilon
    from privtrain.privacy.banded import BandedMatrix
    from privtrain.privacy.clipping import AutomaticClipping, FlatClipping, PerLayerClipping
    from privtrain.privacy.filter import RdpFilter
    from privtrain.privacy.gaussian import Gaussian, Laplace
    from privtrain.privacy.mechanism import Exact
    from privtrain.privacy.placement import AT_AGGREGATOR, AT_PARTY, SPLIT
    from privtrain.privacy.sampling import Everyone, FixedSize, Poisson
    from privtrain.privacy.selection import RandomTrials
    from privtrain.privacy.study_ledger import StudyLedger
    from privtrain.privacy.votes import GNMax, LNMax
    from privtrain.release import Release
    from privtrain.report.files import load, save
    from privtrain.runtimes.flower import FlowerGrid, FlowerRay
    from privtrain.runtimes.in_process import InProcess
    from privtrain.runtimes.processes import Processes
    from privtrain.steps.batches import (
        FixedSizeBatches,
        PoissonBatches,
        ShuffledEpochs,
        TruncatedPoissonBatches,
    )
    from privtrain.steps.bookkeeping import BookKeeping
    from privtrain.steps.cyclic import CyclicPoisson, FixedOrder
    from privtrain.steps.opacus import Opacus
    from privtrain.steps.plain import PlainSteps
    from privtrain.steps.private import DPSteps
    from privtrain.trainers.dp_sgd import DPSGD
    from privtrain.trainers.fedavg import ByExamples, FedAvg, Uniform
    from privtrain.trainers.mpc_sgd import MPCSGD
    from privtrain.trainers.pate import PATE
    from privtrain.trainers.sgd import SGD
    from privtrain.training import calibrate, fit
    from privtrain.tuning import PrivateRows, PublicRows, Tuned, tune

_HOMES = {
    "aggregation.finish": "ARGMAX IDENTITY Threshold",
    "aggregation.plain": "PlainSum",
    "aggregation.shared": "SharedSum",
    "attacks.membership": "LossThreshold",
    "attacks.one_run": "OneRun",
    "auditing": "audit",
    "comparison": "compare",
    "core.errors": "BudgetExceededError DataError PartyLostError PrivacyError PrivtrainError "
    "ProtocolError TamperedShareError UnsoundReleaseError UnsupportedError",
    "core.observers": "AGGREGATOR DEALER Observer PARTICIPANT PUBLIC QUERIER coalition",
    "core.result": "Comparison Leakage TrainResult",
    "core.runtime": "Runtimes",
    "core.seeding": "SEEDED SYSTEM",
    "core.statement": "ADD_REMOVE Budget Guarantee PrivacyStatement REPLACE_ONE ZERO_OUT",
    "core.task": "COLUMNS Canaries FederatedData ROWS Rows Task",
    "core.transcript": "Transcript",
    "mpc.crypten": "CrypTen",
    "privacy.accounting": "RdpCurve epsilon epsilon_bracket group_epsilon",
    "privacy.banded": "BandedMatrix",
    "privacy.clipping": "AutomaticClipping FlatClipping PerLayerClipping",
    "privacy.filter": "RdpFilter",
    "privacy.gaussian": "Gaussian Laplace",
    "privacy.mechanism": "Exact",
    "privacy.placement": "AT_AGGREGATOR AT_PARTY SPLIT",
    "privacy.sampling": "Everyone FixedSize Poisson",
    "privacy.selection": "RandomTrials",
    "privacy.study_ledger": "StudyLedger",
    "privacy.votes": "GNMax LNMax",
    "release": "Release",
    "report.files": "load save",
    "runtimes.flower": "FlowerGrid FlowerRay",
    "runtimes.in_process": "InProcess",
    "runtimes.processes": "Processes",
    "steps.batches": "FixedSizeBatches PoissonBatches ShuffledEpochs TruncatedPoissonBatches",
    "steps.bookkeeping": "BookKeeping",
    "steps.cyclic": "CyclicPoisson FixedOrder",
    "steps.opacus": "Opacus",
    "steps.plain": "PlainSteps",
    "steps.private": "DPSteps",
    "trainers.dp_sgd": "DPSGD",
    "trainers.fedavg": "ByExamples FedAvg Uniform",
    "trainers.mpc_sgd": "MPCSGD",
    "trainers.pate": "PATE",
    "trainers.sgd": "SGD",
    "training": "calibrate fit",
    "tuning": "PrivateRows PublicRows Tuned tune",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [
    "ADD_REMOVE",
    "AGGREGATOR",
    "ARGMAX",
    "AT_AGGREGATOR",
    "AT_PARTY",
    "COLUMNS",
    "DEALER",
    "DPSGD",
    "IDENTITY",
    "MPCSGD",
    "PARTICIPANT",
    "PATE",
    "PUBLIC",
    "QUERIER",
    "REPLACE_ONE",
    "ROWS",
    "SEEDED",
    "SGD",
    "SPLIT",
    "SYSTEM",
    "ZERO_OUT",
    "AutomaticClipping",
    "BandedMatrix",
    "BookKeeping",
    "Budget",
    "BudgetExceededError",
    "ByExamples",
    "Canaries",
    "Comparison",
    "CrypTen",
    "CyclicPoisson",
    "DPSteps",
    "DataError",
    "Everyone",
    "Exact",
    "FedAvg",
    "FederatedData",
    "FixedOrder",
    "FixedSize",
    "FixedSizeBatches",
    "FlatClipping",
    "FlowerGrid",
    "FlowerRay",
    "GNMax",
    "Gaussian",
    "Guarantee",
    "InProcess",
    "LNMax",
    "Laplace",
    "Leakage",
    "LossThreshold",
    "Observer",
    "OneRun",
    "Opacus",
    "PartyLostError",
    "PerLayerClipping",
    "PlainSteps",
    "PlainSum",
    "Poisson",
    "PoissonBatches",
    "PrivacyError",
    "PrivacyStatement",
    "PrivateRows",
    "PrivtrainError",
    "Processes",
    "ProtocolError",
    "PublicRows",
    "RandomTrials",
    "RdpCurve",
    "RdpFilter",
    "Release",
    "Rows",
    "Runtimes",
    "SharedSum",
    "ShuffledEpochs",
    "StudyLedger",
    "TamperedShareError",
    "Task",
    "Threshold",
    "TrainResult",
    "Transcript",
    "TruncatedPoissonBatches",
    "Tuned",
    "Uniform",
    "UnsoundReleaseError",
    "UnsupportedError",
    "audit",
    "calibrate",
    "coalition",
    "compare",
    "data",
    "epsilon",
    "epsilon_bracket",
    "fit",
    "group_epsilon",
    "load",
    "save",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Loads a public name on first use."""
    if name == "data":
        return import_module("privtrain.data")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'privtrain' has no attribute {name!r}")
    value = getattr(import_module(f"privtrain.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return __all__
