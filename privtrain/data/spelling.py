"""What the texts of a table stand for: numbers with all of their digits, codes, no value."""

import math
import re
from decimal import Decimal, InvalidOperation

from privtrain.data.files import parse

MISSING = frozenset({"", "?", "na", "n/a", "nan", "null"})
"""How a missing value is written, in small letters."""


OTHER_SPELLING = re.compile(r"[-+(]?\s*\W?\s*[-+]?\d[\d.,'’\s]*(\s*(\W|[A-Z]{3}))?")
"""Numbers as 1,5 and 1'234 and 5% and $5 and 20 EUR, that `float` does not read."""

FEW, MOST = 10, 0.9
"""So few words may look like numbers; so many of more words do where it is a column of numbers."""

MOST_DIGITS = 308
"""Numbers of more digits are infinite as floating-point numbers."""


def is_missing(value: str) -> bool:
    """Whether a text stands for no value: empty, a word for it, or a number that is not finite."""
    parsed = parse(value)
    return value.lower() in MISSING or parsed in (math.inf, -math.inf)


def is_code(text: str) -> bool:
    """Whether a number begins with a zero that a code has and a number has not, as 007."""
    digits = text.lstrip("+-")
    return len(digits) > 1 and digits[0] == "0" and digits[1].isdigit()


def whole_number(text: str) -> int | None:
    """The whole number that a text stands for, with all of its digits; None for another text."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    # 1e999999 is a whole number of a million digits.
    if "_" in text or not number.is_finite() or number.adjusted() >= MOST_DIGITS:
        return None
    return int(number) if number == number.to_integral_value() else None
