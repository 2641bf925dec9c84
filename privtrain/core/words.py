"""Random words from AES-256 in counter mode (NIST SP 800-38A, section 6.5)."""

from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

KEY_BYTES = 32
_ZEROS = memoryview(bytes(2**18))


class Words:
    """Uniform 64-bit words under one key: whoever has the key draws the same ones.

    Nobody who lacks the key tells the words from random ones, as long as AES holds.

    Args:
        key: 32 bytes, which serve this stream only.
        counter: First block, 16 bytes.

    Raises:
        ValueError: If the key has another length.

    Source: NIST SP 800-38A, section 6.5.
    """

    def __init__(self, key: bytes, counter: bytes = bytes(16)) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"Expected len(key)={len(key)} to be {KEY_BYTES}.")
        self._stream = Cipher(algorithms.AES256(key), modes.CTR(counter)).encryptor()

    def take(self, count: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """The next words.

        Args:
            count: How many; at least zero.

        Returns:
            uint64, shape `(count,)`; the same on every machine.
        """
        size = 8 * count
        # The cipher wants room for one block more, less a byte.
        filled = np.empty(size + 15, dtype=np.uint8)
        for start in range(0, size, len(_ZEROS)):
            self._stream.update_into(_ZEROS[: size - start], filled[start:].data)
        return filled[:size].view("<u8").astype(np.uint64, copy=False)
