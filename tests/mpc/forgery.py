"""How often a changed opening passes the check of SPDZ2k; `tests/mpc/spdz2k` counts it on checks.

A value x of k bits is opened as X = x + e. Key j, alpha in [0, 2^s), has the MAC alpha x modulo
2^(k + s). The check draws a coefficient chi in [0, 2^s) for each opening and key, and accepts where
sum chi (alpha X - MAC) = alpha sum(chi e) is what the deviating party takes off its check vector:
an offset, which it may choose once it knows all chi.

With e = 2^(k-1) in one opening it passes where alpha chi = d modulo 2^(s+1). Let v be the number of
zeros at the end of chi. Whatever d it chose, at most one in 2^s keys fits where v = 0, one in
2^(s+1-v) where 1 <= v < s, and all where chi = 0; d = 0 reaches each of these. So

    P = 2^-1 2^-s + sum over v = 1..s-1 of 2^-(v+1) 2^-(s+1-v) + 2^-s = 2^-s (s + 5) / 4.

No errors do better. The payload changes, so that the smallest power of two in all e is 2^(k-1) at
most; less than that needs more zeros. Let e_1 / 2^(k-1) be odd, and V the sum of chi e / 2^(k-1).
Given the other coefficients, V modulo 2^s is uniform as chi_1 is, and V = 0 modulo 2^(s+1) has one
solution chi_1 at most: V has its zeros no more often than chi alone has.

Keys are independent, and their coefficients, so that m keys pass with P^m. With the same
coefficients for all keys it is the mean over chi of the m-th powers: above 2^-s for any m.
"""

import numpy as np


def exact(s: int, keys: int, *, shared: bool = False) -> float:
    """The probability with which the best deviating party passes; by counting all its cases.

    Args:
        s: Bits of a key, of a coefficient, and of the ring above the payload; few.
        keys: How many keys.
        shared: Whether all keys have the same coefficients, which is wrong.
    """
    products = np.outer(np.arange(2**s), np.arange(2**s)) % 2 ** (s + 1)
    # Of each coefficient: how many keys the offset that fits most often fits.
    best = np.array([np.unique(row, return_counts=True)[1].max() for row in products]) / 2**s
    return float((best**keys).mean() if shared else best.mean() ** keys)


def closed(s: int, keys: int) -> float:
    """The same by the formula, for independent coefficients."""
    return float((2.0**-s * (s + 5) / 4) ** keys)
