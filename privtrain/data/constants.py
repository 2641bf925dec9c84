"""Public constants of known data sets, copied from their documentation, never computed."""

from dataclasses import dataclass

BREAST_CANCER_RANGES = (
    # Feature, lowest and highest value. Source: the table "Summary Statistics" in the description
    # of the Breast Cancer Wisconsin (Diagnostic) data set, as scikit-learn prints it
    # (`load_breast_cancer().DESCR`); W. H. Wolberg, W. N. Street, O. L. Mangasarian, 1995.
    ("mean radius", 6.981, 28.11),
    ("mean texture", 9.71, 39.28),
    ("mean perimeter", 43.79, 188.5),
    ("mean area", 143.5, 2501.0),
    ("mean smoothness", 0.053, 0.163),
    ("mean compactness", 0.019, 0.345),
    ("mean concavity", 0.0, 0.427),
    ("mean concave points", 0.0, 0.201),
    ("mean symmetry", 0.106, 0.304),
    ("mean fractal dimension", 0.05, 0.097),
    ("radius error", 0.112, 2.873),
    ("texture error", 0.36, 4.885),
    ("perimeter error", 0.757, 21.98),
    ("area error", 6.802, 542.2),
    ("smoothness error", 0.002, 0.031),
    ("compactness error", 0.002, 0.135),
    ("concavity error", 0.0, 0.396),
    ("concave points error", 0.0, 0.053),
    ("symmetry error", 0.008, 0.079),
    ("fractal dimension error", 0.001, 0.03),
    ("worst radius", 7.93, 36.04),
    ("worst texture", 12.02, 49.54),
    ("worst perimeter", 50.41, 251.2),
    ("worst area", 185.2, 4254.0),
    ("worst smoothness", 0.071, 0.223),
    ("worst compactness", 0.027, 1.058),
    ("worst concavity", 0.0, 1.252),
    ("worst concave points", 0.0, 0.291),
    ("worst symmetry", 0.156, 0.664),
    ("worst fractal dimension", 0.055, 0.208),
)

PUBLISHED_ROWS = {"digits": 1_797, "breast_cancer": 569, "mnist": 60_000, "adult": 32_561}
"""How many rows, test rows of the publishers aside, the documentation of each data set states."""

DIGITS_HIGHEST = 16.0
"""Pixels of `digits` count the dots that are on in a block of 4 x 4.

Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
"""

MNIST_HIGHEST = 255.0
"""Pixels of MNIST are grey levels of one byte."""


@dataclass(frozen=True)
class Number:
    """A numeric column and its public range.

    Args:
        name: Name of the column.
        low: Lowest value; what lies below is clamped.
        high: Highest value; what lies above is clamped.
    """

    name: str
    low: float
    high: float


@dataclass(frozen=True)
class Category:
    """A column of words and the public list of what may stand in it.

    Args:
        name: Name of the column.
        values: The words; each becomes one column of zeros and ones.
    """

    name: str
    values: tuple[str, ...]


MISSING = "?"
"""How Adult writes a missing value; it counts as a category of its own."""

ADULT_COLUMNS: tuple[Number | Category, ...] = (
    # Words: the attribute list of `adult.names` (B. Becker and R. Kohavi, UCI, 1996), which says
    # that values are missing, as they are in three columns. Ranges are round figures that hold for
    # anybody: 100 years, weeks of 100 hours, education coded 1..16. Money and the sampling weight
    # `fnlwgt` have no stated bound; they are clamped at round figures. Misspelt words are spelt as
    # the files spell them.
    Number("age", 0, 100),
    Category(
        "workclass",
        (
            "Private",
            "Self-emp-not-inc",
            "Self-emp-inc",
            "Federal-gov",
            "Local-gov",
            "State-gov",
            "Without-pay",
            "Never-worked",
            MISSING,
        ),
    ),
    Number("fnlwgt", 0, 1_500_000),
    Category(
        "education",
        (
            "Bachelors",
            "Some-college",
            "11th",
            "HS-grad",
            "Prof-school",
            "Assoc-acdm",
            "Assoc-voc",
            "9th",
            "7th-8th",
            "12th",
            "Masters",
            "1st-4th",
            "10th",
            "Doctorate",
            "5th-6th",
            "Preschool",
        ),
    ),
    Number("education-num", 1, 16),
    Category(
        "marital-status",
        (
            "Married-civ-spouse",
            "Divorced",
            "Never-married",
            "Separated",
            "Widowed",
            "Married-spouse-absent",
            "Married-AF-spouse",
        ),
    ),
    Category(
        "occupation",
        (
            "Tech-support",
            "Craft-repair",
            "Other-service",
            "Sales",
            "Exec-managerial",
            "Prof-specialty",
            "Handlers-cleaners",
            "Machine-op-inspct",
            "Adm-clerical",
            "Farming-fishing",
            "Transport-moving",
            "Priv-house-serv",
            "Protective-serv",
            "Armed-Forces",
            MISSING,
        ),
    ),
    Category(
        "relationship",
        ("Wife", "Own-child", "Husband", "Not-in-family", "Other-relative", "Unmarried"),
    ),
    Category("race", ("White", "Asian-Pac-Islander", "Amer-Indian-Eskimo", "Other", "Black")),
    Category("sex", ("Female", "Male")),
    Number("capital-gain", 0, 20_000),
    Number("capital-loss", 0, 5_000),
    Number("hours-per-week", 0, 100),
    Category(
        "native-country",
        (
            "United-States",
            "Cambodia",
            "England",
            "Puerto-Rico",
            "Canada",
            "Germany",
            "Outlying-US(Guam-USVI-etc)",
            "India",
            "Japan",
            "Greece",
            "South",
            "China",
            "Cuba",
            "Iran",
            "Honduras",
            "Philippines",
            "Italy",
            "Poland",
            "Jamaica",
            "Vietnam",
            "Mexico",
            "Portugal",
            "Ireland",
            "France",
            "Dominican-Republic",
            "Laos",
            "Ecuador",
            "Taiwan",
            "Haiti",
            "Columbia",
            "Hungary",
            "Guatemala",
            "Nicaragua",
            "Scotland",
            "Thailand",
            "Yugoslavia",
            "El-Salvador",
            "Trinadad&Tobago",
            "Peru",
            "Hong",
            "Holand-Netherlands",
            MISSING,
        ),
    ),
)

ADULT_LABELS = ("<=50K", ">50K")
"""Classes 0 and 1 of Adult."""

# Counted in the lists above, so that the width of a model never depends on which words occur.
ADULT_FEATURES = sum(
    len(column.values) if isinstance(column, Category) else 1 for column in ADULT_COLUMNS
)
"""Columns of Adult after words became zeros and ones: 108."""
