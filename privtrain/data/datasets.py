"""Known data sets: two that scikit-learn ships, two that are read from a directory."""

from pathlib import Path

import torch

from privtrain.core.recipe import Column
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.data.arrays import scaled
from privtrain.data.columns import encoded_by
from privtrain.data.constants import (
    ADULT_COLUMNS,
    ADULT_FEATURES,
    ADULT_LABELS,
    BREAST_CANCER_RANGES,
    DIGITS_HIGHEST,
    MNIST_HIGHEST,
    PUBLISHED_ROWS,
    Category,
)
from privtrain.data.federation import EVENLY, Layout, federate
from privtrain.data.files import read_adult, read_mnist
from privtrain.data.models import CNN, MLP, LogisticRegression, Model, chosen_model
from privtrain.data.partition import Partition


def digits(
    *,
    parties: int | tuple[str, ...] = 10,
    partition: Partition = EVENLY,
    seed: int = 0,
    test_fraction: float = 0.2,
    validation_fraction: float = 0.1,
    public_fraction: float = 0.0,
    hidden: int = 64,
    model: Model | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Task, FederatedData]:
    """Handwritten digits: 1,797 images of 8 x 8 pixels, 10 classes, embedded in scikit-learn.

    Pixels are divided by 16, the highest value they can take. The default model is an MLP
    64-64-10 (4,810 parameters). Test, validation and public rows are the same for every seed.

    Args:
        parties: How many parties there are, or their names.
        partition: Which party holds which rows or columns.
        seed: Public seed of the partition.
        test_fraction: Fraction of the rows for testing.
        validation_fraction: Fraction of the rows for choosing settings.
        public_fraction: Fraction of the rows that become public, without labels.
        hidden: Width of the default model's hidden layer.
        model: Makes the model; replaces the default one.
        dtype: `torch.float32` or `torch.float64`.

    Returns:
        The task and the data, with inputs of shape `(rows, 64)`.

    Raises:
        DataError: If a party would be left without rows.

    Source: E. Alpaydin and C. Kaynak, UCI, 1998: the test part, as scikit-learn ships it.
    """
    from sklearn.datasets import load_digits  # heavy, and needed here only

    bunch = load_digits()
    # What a pixel can be, not what the brightest pixel of these rows is: nothing is measured.
    inputs = torch.from_numpy(bunch.data / DIGITS_HIGHEST).to(dtype)
    rows = Rows(inputs, torch.from_numpy(bunch.target).to(torch.int64))
    layout = Layout(
        parties=parties,
        partition=partition,
        seed=seed,
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
        public_fraction=public_fraction,
    )
    default = MLP((64, hidden, 10), dtype)
    task, data = _known("digits", rows, layout, model or default, classes=10)
    return task, encoded_by(data, scale=(0.0, DIGITS_HIGHEST))


def breast_cancer(
    *,
    parties: int | tuple[str, ...] = 10,
    partition: Partition = EVENLY,
    seed: int = 0,
    test_fraction: float = 0.2,
    validation_fraction: float = 0.1,
    public_fraction: float = 0.0,
    hidden: int | None = None,
    model: Model | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Task, FederatedData]:
    """Breast cancer Wisconsin: 569 rows of 30 features, 2 classes, embedded in scikit-learn.

    Class 0 is malignant, class 1 benign. Features are clamped to the ranges that the data set's
    description prints and mapped to [0, 1]. The default model is logistic regression. Test,
    validation and public rows are the same for every seed.

    Args:
        parties: How many parties there are, or their names.
        partition: Which party holds which rows or columns.
        seed: Public seed of the partition.
        test_fraction: Fraction of the rows for testing.
        validation_fraction: Fraction of the rows for choosing settings.
        public_fraction: Fraction of the rows that become public, without labels.
        hidden: Width of a hidden layer; None makes the default model linear.
        model: Makes the model; replaces the default one.
        dtype: `torch.float32` or `torch.float64`.

    Returns:
        The task and the data, with inputs of shape `(rows, 30)`.

    Raises:
        DataError: If a party would be left without rows.

    Source: W. H. Wolberg, W. N. Street and O. L. Mangasarian, UCI, 1995.
    """
    from sklearn.datasets import load_breast_cancer  # heavy, and needed here only

    bunch = load_breast_cancer()
    # The printed ranges are the extremes of these very rows. They are public because the data set
    # is; for private data they would be 60 unpaid queries.
    low = [lowest for _, lowest, _ in BREAST_CANCER_RANGES]
    high = [highest for _, _, highest in BREAST_CANCER_RANGES]
    inputs = scaled(torch.from_numpy(bunch.data), (low, high)).to(dtype)
    rows = Rows(inputs, torch.from_numpy(bunch.target).to(torch.int64))
    layout = Layout(
        parties=parties,
        partition=partition,
        seed=seed,
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
        public_fraction=public_fraction,
    )
    linear = LogisticRegression(30, 2, dtype)
    default = linear if hidden is None else MLP((30, hidden, 2), dtype)
    task, data = _known("breast_cancer", rows, layout, model or default, classes=2)
    columns = [Column(name=name, range=(low, high)) for name, low, high in BREAST_CANCER_RANGES]
    return task, encoded_by(data, columns=columns, classes=tuple(bunch.target_names.tolist()))


def mnist(
    directory: str | Path | None = None,
    *,
    parties: int | tuple[str, ...] = 10,
    partition: Partition = EVENLY,
    seed: int = 0,
    validation_fraction: float = 0.1,
    public_fraction: float = 0.0,
    flat: bool = False,
    hidden: int = 128,
    model: Model | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Task, FederatedData]:
    """MNIST: 60,000 handwritten digits of 28 x 28 pixels and 10,000 for testing, from IDX files.

    Pixels are divided by 255. The default model is a CNN of 26,010 parameters, or an MLP where
    images are flat. Test rows are those of the publishers.

    Args:
        directory: Where the four files lie; else the environment variable `PRIVTRAIN_DATA`.
        parties: How many parties there are, or their names.
        partition: Which party holds which rows or columns.
        seed: Public seed of the partition.
        validation_fraction: Fraction of the 60,000 for choosing settings.
        public_fraction: Fraction of the 60,000 that become public, without labels.
        flat: Whether images are rows of 784 numbers rather than of shape `(1, 28, 28)`.
        hidden: Width of the hidden layer of the default model of flat images.
        model: Makes the model; replaces the default one.
        dtype: `torch.float32` or `torch.float64`.

    Returns:
        The task and the data.

    Raises:
        DataError: If a file is missing or damaged.

    Source: Y. LeCun, C. Cortes and C. Burges, the MNIST database of handwritten digits.
    """
    images, labels = read_mnist(directory)
    # A convolution takes the colour as its own dimension, here of one channel.
    shape = (784,) if flat else (1, 28, 28)
    rows, test = (
        Rows((images[part].to(dtype) / MNIST_HIGHEST).reshape(-1, *shape), labels[part])
        for part in ("train", "test")
    )
    layout = Layout(
        parties=parties,
        partition=partition,
        seed=seed,
        validation_fraction=validation_fraction,
        public_fraction=public_fraction,
    )
    default = MLP((784, hidden, 10), dtype) if flat else CNN(10, dtype)
    task, data = _known("mnist", rows, layout, model or default, classes=10, test=test)
    return task, encoded_by(data, scale=(0.0, MNIST_HIGHEST))


def adult(
    directory: str | Path | None = None,
    *,
    parties: int | tuple[str, ...] = 10,
    partition: Partition = EVENLY,
    seed: int = 0,
    validation_fraction: float = 0.1,
    public_fraction: float = 0.0,
    hidden: int | None = None,
    model: Model | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Task, FederatedData]:
    """Adult: 32,561 census records and 16,281 for testing; does a person earn over 50,000 dollars?

    Words become zeros and ones by the lists that the data set's documentation prints, numbers are
    clamped to public ranges and mapped to [0, 1]: 108 features. The default model is logistic
    regression. Test rows are those of the publishers.

    Args:
        directory: Where the two files lie; else the environment variable `PRIVTRAIN_DATA`.
        parties: How many parties there are, or their names.
        partition: Which party holds which rows or columns.
        seed: Public seed of the partition.
        validation_fraction: Fraction of the 32,561 for choosing settings.
        public_fraction: Fraction of the 32,561 that become public, without labels.
        hidden: Width of a hidden layer; None makes the default model linear.
        model: Makes the model; replaces the default one.
        dtype: `torch.float32` or `torch.float64`.

    Returns:
        The task and the data, with inputs of shape `(rows, 108)`.

    Raises:
        DataError: If a file is missing or damaged.

    Source: B. Becker and R. Kohavi, UCI, 1996.
    """
    train, test = (
        Rows(torch.from_numpy(inputs).to(dtype), torch.from_numpy(targets))
        for inputs, targets in read_adult(directory)
    )
    layout = Layout(
        parties=parties,
        partition=partition,
        seed=seed,
        validation_fraction=validation_fraction,
        public_fraction=public_fraction,
    )
    # The width follows from the published lists of words, not from the words of these rows.
    linear = LogisticRegression(ADULT_FEATURES, 2, dtype)
    default = linear if hidden is None else MLP((ADULT_FEATURES, hidden, 2), dtype)
    task, data = _known("adult", train, layout, model or default, classes=2, test=test)
    columns = [
        Column(name=each.name, words=each.values)
        if isinstance(each, Category)
        else Column(name=each.name, range=(each.low, each.high))
        for each in ADULT_COLUMNS
    ]
    return task, encoded_by(data, columns=columns, classes=ADULT_LABELS)


def _known(
    name: str,
    rows: Rows,
    layout: Layout,
    model: Model,
    *,
    classes: int,
    test: Rows | None = None,
) -> tuple[Task, FederatedData]:
    if not rows.inputs.is_floating_point():
        raise ValueError(
            f"Expected dtype={rows.inputs.dtype} to be torch.float32 or torch.float64: the inputs "
            f"of {name} are quantities."
        )
    # A sampling rate from the number that fell to training would be a count (decision 004); one
    # from the documentation is the same whichever rows are in the file.
    data = federate(rows, layout, name=name, test=test, published=PUBLISHED_ROWS[name])
    return Task(model=chosen_model(model, rows.inputs, classes), name=name), data
