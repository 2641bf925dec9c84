"""What a command's arguments and its study file ask for together."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privtrain.command.arguments import Compare, Fit, check_alone
from privtrain.command.overrides import changed_trainer, overridden
from privtrain.command.study_file import Study, read_study
from privtrain.command.tables import default_tables, make_trainer
from privtrain.core.nearest import nearest
from privtrain.core.trainer import Trainer


def study_of(args: Compare) -> Study:
    """The study that the arguments name or spell out, with what `--set` changes.

    Raises:
        ValueError: If an argument contradicts the study file, or a setting is not known.
    """
    if args.study is not None:
        check_alone(args)
        return overridden(read_study(args.study), args.settings)
    study = Study(
        data=args.where.data,
        data_options=args.where.options(),
        model=args.where.model,
        trainers=default_tables(args.trainers, secure=args.secure),
        epsilons=args.epsilon,
        delta=args.delta,
        seeds=args.seeds,
        attacks=args.attacks,
        canaries=args.canaries,
        runtime=args.runtime,
        device=args.run.device,
        baseline=args.baseline,
    )
    return overridden(study, args.settings)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `fit` trains.

    Args:
        name: What the trainer is called: its token, or its label in a study file.
        trainer: The trainer, before noise is chosen.
        epsilon: The promise for which its noise is chosen; None for the noise it has.
        data: Name of a data set or path of a file.
        data_options: What its loader takes.
        model: Reference of a function that makes the model; None for the data set's own.
        delta: Delta of every guarantee.
        runtime: Name of the star runtime.
        device: Where tensors are computed.
        notes: What of a study file does not count here.
    """

    name: str
    trainer: Trainer
    epsilon: float | None
    data: str
    data_options: dict[str, Any]
    model: str | None
    delta: float
    runtime: str
    device: str
    notes: tuple[str, ...] = ()


def plan_of(args: Fit) -> Plan:
    """What the arguments of `fit`, and its study file where there is one, ask for.

    Raises:
        ValueError: If an argument contradicts the study file, a study has several trainers and none
            is chosen, or a setting is not known.
    """
    if args.study is not None:
        return _plan_of_study(args, read_study(args.study), args.study)
    token = args.trainer or "dp_sgd"
    (settings,) = default_tables((token,), secure=args.secure).values()
    trainer = make_trainer(settings.pop("trainer"), settings)
    return Plan(
        name=token,
        trainer=changed_trainer(trainer, args.settings),
        epsilon=args.epsilon,
        data=args.where.data,
        data_options=args.where.options(),
        model=args.where.model,
        delta=args.delta,
        runtime=args.runtime,
        device=args.run.device,
    )


def _plan_of_study(args: Fit, study: Study, path: Path) -> Plan:
    check_alone(args)
    labels, made = [*study.trainers], study.make_trainers()
    if args.trainer is None and len(labels) > 1:
        raise ValueError(
            f"{path} has the trainers {', '.join(labels)}: name the one to train, as by --trainer "
            f"{labels[0]}."
        )
    label = args.trainer or labels[0]
    if label not in made:
        raise ValueError(
            f"Expected trainer={label!r} to be one of {', '.join(labels)}, the trainers of {path}."
            f"{nearest(label, labels)}"
        )
    trainer = changed_trainer(made[label], args.settings, label)
    planted = "no canaries are planted: a model that is published is not audited by them"
    return Plan(
        name=label,
        trainer=trainer,
        epsilon=_epsilon(args, study, trainer, path),
        data=study.data,
        data_options=dict(study.data_options),
        model=study.model,
        delta=study.delta,
        runtime=study.runtime,
        device=study.device,
        notes=(planted,) if study.canaries else (),
    )


def _epsilon(args: Fit, study: Study, trainer: Trainer, path: Path) -> float | None:
    if args.epsilon is not None:
        return args.epsilon
    # As in a comparison: asked of those only that draw noise.
    if not study.epsilons or trainer.with_noise(1.0) is None:
        return None
    if len(study.epsilons) > 1:
        asked = ", ".join(f"{epsilon:g}" for epsilon in study.epsilons)
        raise ValueError(
            f"{path} asks for the epsilons {asked}: name the one to promise, as by --epsilon "
            f"{study.epsilons[0]:g}."
        )
    return study.epsilons[0]
