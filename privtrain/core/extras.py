"""Packages that one part of privtrain needs and most users do not, and the lines that install them.

The base installation trains by SGD, DP-SGD, FedAvg in this process and PATE, compares and attacks.
"""

import importlib.util

from privtrain.core.errors import UnsupportedError

EXTRAS = {
    "crypten": "crypten",
    "flwr": "flower",
    "kymatio": "scattering",
    "matplotlib": "plots",
    "omegaconf": "crypten",
    "onnx": "crypten",
    "opacus": "opacus",
    "ray": "ray",
    "yaml": "crypten",
}
"""Package, as it is imported, to the extra of privtrain that installs it, or what it needs."""

_CRYPTEN = "pip install --no-deps crypten==0.4.1"


def is_missing(package: str) -> bool:
    """Whether a package cannot be imported here; nothing is loaded."""
    try:
        return importlib.util.find_spec(package) is None
    except ValueError:  # loaded by hand, without a place that it came from
        return False


def missing(part: str, package: str) -> UnsupportedError:
    """The error of a part whose package is not installed, with the way out.

    Args:
        part: What was asked for, such as "FlowerRay".
        package: What it needs, as it is imported.
    """
    extra = EXTRAS.get(package)
    lines = [f'pip install "privtrain[{extra}]"' if extra else f"pip install {package}"]
    if extra == "crypten":
        # Its metadata name a retired package, so that no extra can install it.
        lines.append(_CRYPTEN)
    return UnsupportedError(
        f"{part} needs {package}, which is not installed. Install it by: {' && '.join(lines)}"
    )


def check_installed(part: str, *packages: str) -> None:
    """Refuses a part whose packages are not all there, before anything is trained or spent.

    Args:
        part: What was asked for, for the message.
        packages: What it needs, as they are imported.

    Raises:
        UnsupportedError: Naming the first that is missing, and the lines that install it.
    """
    for package in packages:
        if is_missing(package):
            raise missing(part, package)
