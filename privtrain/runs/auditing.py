"""Auditing: what an attack learns from a run's view of one observer."""

from privtrain.attacks.attack import Attack, target_for
from privtrain.core.result import Leakage, TrainResult
from privtrain.core.task import FederatedData, Task
from privtrain.data.canaries import without_canaries


def audit(
    result: TrainResult, attack: Attack, task: Task, data: FederatedData, *, seed: int = 0
) -> Leakage:
    """Lets an attack try what its observer can learn from a training run.

    Args:
        result: What training gave.
        attack: The attack; it sees its own observer's view and nothing else.
        task: What was learned.
        data: The rows: training rows are members, test rows are not. Canaries that were planted
            in them are handed on, and are no members: they are unlike the test rows.
        seed: Public seed of the attack's own choices.

    Returns:
        What the attack learned. It is no evidence of safety against another one.
    """
    # `target_for` cuts the transcript down to the observer's view: an attack never sees more.
    target = target_for(
        attack.observer,
        transcript=result.transcript,
        predictor=result.predictor,
        task=task,
        members=without_canaries(data) if result.members is None else result.members,
        non_members=data.test,
        # Where training made some of its rows public, canaries may be among them: not protected.
        canaries=data.canaries if result.members is None else None,
        promised=result.statement.curves,
    )
    return attack.run(target, seed=seed)
