"""Public constants are those of the documentation."""

from privtrain.data.constants import BREAST_CANCER_RANGES


def test_breast_cancer_ranges_are_the_documented_ones() -> None:
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    assert [name for name, _, _ in BREAST_CANCER_RANGES] == bunch.feature_names.tolist()
    printed = [
        tuple(map(float, line.rsplit(maxsplit=2)[1:]))
        for line in bunch.DESCR.splitlines()
        if "):" in line and line.split()[-1].replace(".", "").isdigit()
    ]
    assert printed == [(low, high) for _, low, high in BREAST_CANCER_RANGES]
