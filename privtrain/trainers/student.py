"""The student of PATE: what it is given, and what leaves it."""

from privtrain.core.parameters import ModelPredictor, initial_model, to_vector, trainable
from privtrain.core.runtime import Draws
from privtrain.core.task import Rows, Task
from privtrain.core.trainer import Run
from privtrain.steps.optimizers import check_not_diverged
from privtrain.steps.student import PublicInputs, StudentSteps

STUDENT_NAME = "student"


def trained_student(
    steps: StudentSteps, task: Task, answered: Rows, public: PublicInputs, run: Run
) -> ModelPredictor:
    """A student, trained on public rows and released answers alone.

    Args:
        steps: How it is trained.
        task: What is learned.
        answered: The queries that were answered, and their answers.
        public: All public rows, asked about or not.
        run: The run.

    Returns:
        The student; one that got no answer stays as it was initialised.
    """
    # Public rows and answers are public: everything from here on is post-processing.
    model = initial_model(task, run.seeds["initialisation", 0, ""]).to(run.device)
    if len(answered) > 0:
        own = Draws(run.seeds, run.entropy, 0, STUDENT_NAME, device=run.device)
        seen = steps.learn(model.train(), task, answered, public, own)
        check_not_diverged(trainable(model), answered.inputs, said="These rows are public.")
        run.outcome.note(*seen.notes)
        run.outcome.history.record(1, student_loss=seen.numbers["training_loss"])
    run.watch(1, 1, ModelPredictor(model))
    run.transcript.publish("model", to_vector(trainable(model)), sender=STUDENT_NAME, round=1)
    # A student saw public queries and released answers only, so that its buffers tell no more.
    return ModelPredictor(model, buffers_released=True)


def learned_student(
    steps: StudentSteps, task: Task, public: PublicInputs, run: Run, known: Rows, number: int
) -> ModelPredictor:
    """A student on the way, which says what it expects of further queries.

    Args:
        steps: How it is trained.
        task: What is learned.
        public: All public rows, asked about or not.
        run: The run.
        known: The queries that were answered so far, and their answers; at least one.
        number: Which training this is; 0 is the last one, that of `trained_student`.
    """
    model = initial_model(task, run.seeds["initialisation", 0, ""]).to(run.device)
    own = Draws(run.seeds, run.entropy, number, STUDENT_NAME, device=run.device)
    steps.learn(model.train(), task, known, public, own)
    check_not_diverged(trainable(model), known.inputs, said="These rows are public.")
    return ModelPredictor(model)
