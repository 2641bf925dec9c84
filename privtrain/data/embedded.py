"""Public figures of the embedded data sets: constants written down, never computed from rows."""

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

DIGITS_HIGHEST = 16.0
"""Pixels of `digits` count the dots that are on in a block of 4 x 4.

Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
"""
