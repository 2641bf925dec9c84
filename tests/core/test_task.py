import copy

import cloudpickle
import pytest
import torch
from torch import nn

from privtrain.core.errors import DataError
from privtrain.core.metrics import accuracy
from privtrain.core.task import (
    COLUMNS,
    FederatedData,
    Rows,
    Task,
    binary_cross_entropy,
    concatenate,
    cross_entropy,
    widest_column,
)


def rows(count: int, *, targets: bool = True, users: bool = True) -> Rows:
    numbers = torch.arange(count)
    return Rows(
        torch.arange(2.0 * count).reshape(count, 2),
        numbers if targets else None,
        numbers + 10 if users else None,
    )


def test_columns_of_another_length_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(2,\).* have the shape \(3,\)"):
        Rows(torch.zeros(3, 2), users=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(DataError, match="3 rows and targets with 4 rows"):
        Rows(torch.zeros(3, 2), torch.zeros(4))
    with pytest.raises(DataError, match="no targets"):
        _ = Rows(torch.zeros(3, 2)).labels


def test_taken_rows_keep_their_targets_and_users() -> None:
    taken = rows(5).take(torch.tensor([3, 1]))
    assert taken.inputs.tolist() == [[6.0, 7.0], [2.0, 3.0]]
    assert taken.labels.tolist() == [3, 1]
    assert taken.users is not None and taken.users.tolist() == [13, 11]


def test_a_column_that_a_part_lacks_is_lost() -> None:
    whole = concatenate([rows(2), rows(3)])
    assert len(whole) == 5
    assert whole.labels.tolist() == [0, 1, 0, 1, 2]
    assert whole.users is not None and whole.users.tolist() == [10, 11, 10, 11, 12]
    assert concatenate([rows(2), rows(3, users=False)]).users is None
    assert concatenate([rows(2, targets=False), rows(3)]).targets is None


def test_pooled_columns_stand_side_by_side_with_the_holders_labels() -> None:
    parts = {"a": rows(3, targets=False, users=False), "b": rows(3, users=False)}
    data = FederatedData(train=parts, test=rows(1), split=COLUMNS, label_holder="b")
    assert data.parties == ("a", "b")
    assert data.pooled().inputs.shape == (3, 4)
    assert data.pooled().labels.tolist() == [0, 1, 2]
    unlabelled = FederatedData(train=parts, test=rows(1), split=COLUMNS)
    assert unlabelled.pooled().targets is None


def test_losses_are_one_a_row_and_accuracy_is_a_fraction() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    targets = torch.tensor([0, 1, 1])
    losses = cross_entropy(logits, targets)
    assert losses.shape == (3,)
    assert losses[2] == pytest.approx(3.0486, abs=1e-4)
    assert accuracy(logits, targets) == 2 / 3


@pytest.mark.parametrize("shape", [(4, 1), (4,)])
@pytest.mark.parametrize("kind", [torch.int64, torch.float32, torch.bool])
def test_one_logit_a_row_says_class_one_above_zero(
    shape: tuple[int, ...], kind: torch.dtype
) -> None:
    logits = torch.tensor([2.0, -1.0, 0.5, -3.0]).reshape(shape)
    targets = torch.tensor([1, 0, 0, 0]).to(kind)
    assert accuracy(logits, targets) == 3 / 4
    assert accuracy(logits, targets.reshape(shape)) == 3 / 4


def test_a_task_prints_what_identifies_it() -> None:
    """A folder is resumed only where the task prints alike."""
    made = Task(model=nn.Identity)
    assert repr(made).startswith("Task(model=<class 'torch.nn.modules.linear.Identity'>, loss=<f")
    assert repr(made).endswith("name='task')")
    net, other = nn.Linear(3, 2), nn.Linear(3, 2)
    assert repr(Task(model=net)) == repr(Task(model=copy.deepcopy(net)))
    # Other weights are another start.
    assert repr(Task(model=net)) != repr(Task(model=other))
    again = cloudpickle.loads(cloudpickle.dumps(Task(model=net)))
    assert repr(again) == repr(Task(model=net))


def test_the_widest_column_is_named_by_its_place() -> None:
    table = torch.zeros(3, 4)
    table[1, 2], table[0, 1] = -7.0, 5.0
    assert widest_column(table).startswith("Column 2 of the inputs")
    assert "from -7 to 0" in widest_column(table)
    assert "Column (1, 0)" in widest_column(table.reshape(3, 2, 2))
    assert "Column 0" in widest_column(torch.ones(5))
    table[2, 3] = float("nan")
    assert "Column 3" in widest_column(table)


def test_rows_of_inference_mode_can_be_trained_on() -> None:
    with torch.inference_mode():
        made = rows(4)
    columns = (made.inputs, made.targets, made.users)
    assert not any(column is not None and column.is_inference() for column in columns)
    assert torch.equal(made.inputs, rows(4).inputs)


def test_parties_of_another_width_are_named() -> None:
    train = {"a": Rows(torch.zeros(3, 3)), "b": Rows(torch.zeros(3, 4))}
    with pytest.raises(DataError, match=r"inputs of 'b' .*\(4,\).*\(3,\).*'a'"):
        FederatedData(train=train, test=train["a"]).pooled()
    with pytest.raises(DataError, match="number 1"):
        concatenate([*train.values()])


def test_other_kinds_of_data_are_refused_by_name() -> None:
    for train in ([rows(3)], rows(3), None):
        with pytest.raises(DataError, match="Expected train to be a mapping"):
            FederatedData(train=train, test=rows(1))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="Expected test to be Rows, not a NoneType"):
        FederatedData(train={"a": rows(3)}, test=None)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="Expected public to be Rows, not a Tensor"):
        FederatedData(
            train={"a": rows(3)},
            test=rows(1),
            public=torch.zeros(3),  # type: ignore[arg-type]
        )


def test_data_print_who_holds_what() -> None:
    data = FederatedData(
        train={"a": rows(3), "b": rows(2)}, test=rows(1), name="mine", notes=("a note",)
    )
    assert repr(data) == str(data)
    assert str(data).startswith("mine: 2 parties, 5 training rows of shape (2,)")
    assert str(data).endswith("a note") and "not stated" in str(data)
    assert data._repr_html_().count("<tr>") == 3
    figure = data.plot()
    assert figure.axes[0].get_ylabel() == "rows"


def test_logistic_loss_is_that_of_one_logit_in_any_shape() -> None:
    logits = torch.tensor([[-1.0], [2.0], [0.0]])
    wanted = torch.log1p(torch.exp(torch.tensor([-1.0, -2.0, 0.0])))
    for targets in (torch.tensor([0, 1, 1]), torch.tensor([[0.0], [1.0], [1.0]])):
        for shaped in (logits, logits.flatten()):
            torch.testing.assert_close(binary_cross_entropy(shaped, targets), wanted)


def test_rows_of_a_single_party_are_joined_without_a_copy() -> None:
    parts = [Rows(torch.full((2, 3), float(n)), torch.full((2,), n)) for n in range(2)]
    alone = FederatedData(train={"a": parts[0]}, test=parts[1])
    assert alone.joined() is parts[0] and alone.pooled() is not parts[0]
    both = FederatedData(train={"a": parts[0], "b": parts[1]}, test=parts[1])
    assert torch.equal(both.joined().inputs, both.pooled().inputs)
