"""Models of tokens with torch's own attention, and their rows of whole numbers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from privtrain.core.task import Rows

TOKENS, LENGTH, WIDTH = 13, 6, 8
PADDING = 0


class Reader(nn.Module):
    """Tokens through one layer, and their mean without padding."""

    def __init__(self, layer: nn.Module, padded: bool = False) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(TOKENS, WIDTH), layer
        self.head, self.padded = nn.Linear(WIDTH, 3), padded

    def attend(self, words: Tensor, padding: Tensor | None) -> Tensor:
        out: Tensor = self.layer(words, src_key_padding_mask=padding)
        return out

    def forward(self, x: Tensor) -> Tensor:
        padding = x == PADDING if self.padded else None
        read = self.attend(self.table(x), padding)
        if padding is not None:
            read = read.masked_fill(padding.unsqueeze(2), 0.0)
        out: Tensor = self.head(read.mean(dim=1))
        return out


class Heads(Reader):
    """`nn.MultiheadAttention` with the batch in front, or with time."""

    def __init__(self, weights: bool = True, batch_first: bool = True, **settings: Any) -> None:
        layer = nn.MultiheadAttention(WIDTH, 2, batch_first=batch_first, **settings)
        super().__init__(layer, padded=True)
        self.weights = weights

    def attend(self, words: Tensor, padding: Tensor | None) -> Tensor:
        given = words if self.layer.batch_first else words.transpose(0, 1)
        found, _ = self.layer(
            *(given, given, given), key_padding_mask=padding, need_weights=self.weights
        )
        out: Tensor = found if self.layer.batch_first else found.transpose(0, 1)
        return out


class TimeForBatch(Heads):
    """Gives a layer that takes time in front a batch in front: rows attend to one another."""

    def attend(self, words: Tensor, padding: Tensor | None) -> Tensor:
        out: Tensor = self.layer(words, words, words)[0]
        return out


class Decoder(Reader):
    """Reads with a causal mask, from what it reads."""

    def attend(self, words: Tensor, padding: Tensor | None) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH, dtype=words.dtype)
        out: Tensor = self.layer(words, words, tgt_mask=mask, tgt_is_causal=True)
        return out


class Both(Reader):
    """An encoder and a decoder."""

    def attend(self, words: Tensor, padding: Tensor | None) -> Tensor:
        out: Tensor = self.layer(words, words, src_key_padding_mask=padding)
        return out


class Own(Reader):
    """`scaled_dot_product_attention` with its own products."""

    def __init__(self, causal: bool) -> None:
        super().__init__(nn.Linear(WIDTH, 3 * WIDTH), padded=False)
        self.causal = causal

    def attend(self, words: Tensor, padding: Tensor | None) -> Tensor:
        three = self.layer(words).view(len(words), LENGTH, 3, 2, WIDTH // 2)
        query, key, value = three.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return mixed.transpose(1, 2).reshape(len(words), LENGTH, WIDTH)


class Tied(Reader):
    """Its head is the table of its tokens."""

    def forward(self, x: Tensor) -> Tensor:
        read = self.attend(self.table(x), None).mean(dim=1)
        return functional.linear(read, self.table.weight)[:, :3]


class Frozen(Reader):
    """A frozen encoder in evaluation mode, below a scale that no layer has."""

    def __init__(self) -> None:
        super().__init__(nn.TransformerEncoder(encoder(dropout=0.1), 2), padded=True)
        self.table.requires_grad_(False)
        self.layer.requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        self.layer.eval()
        return self

    def attend(self, words: Tensor, padding: Tensor | None) -> Tensor:
        return super().attend(words, padding) * self.scale


def encoder(**settings: Any) -> nn.TransformerEncoderLayer:
    given = {"dropout": 0.0, "batch_first": True} | settings
    return nn.TransformerEncoderLayer(WIDTH, 2, 12, **given)


def decoder() -> nn.TransformerDecoderLayer:
    return nn.TransformerDecoderLayer(WIDTH, 2, 12, dropout=0.0, batch_first=True)


def transformer() -> nn.Transformer:
    return nn.Transformer(WIDTH, 2, 1, 1, 12, dropout=0.0, batch_first=True)


ATTENTION: dict[str, Callable[[], nn.Module]] = {
    "encoder layer": lambda: Reader(encoder()),
    "padded": lambda: Reader(encoder(), padded=True),
    "norm first": lambda: Reader(encoder(norm_first=True, activation="gelu"), padded=True),
    "encoder": lambda: Reader(nn.TransformerEncoder(encoder(), 2), padded=True),
    "heads": lambda: Heads(),
    "heads without weights": lambda: Heads(weights=False),
    "heads without bias": lambda: Heads(bias=False),
    "one more key and value": lambda: Heads(weights=False, add_bias_kv=True),
    "time in front": lambda: Heads(batch_first=False),
    "decoder": lambda: Decoder(decoder()),
    "both": lambda: Both(transformer(), padded=True),
    "tied": lambda: Tied(encoder()),
    "frozen": lambda: Frozen(),
}
"""Models that need `torch.func`, without dropout in what they train."""


def tokens(count: int = 7, seed: int = 1) -> Rows:
    """Rows of whole numbers, some of them padded at the end, the first token never."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(1, TOKENS, (count, LENGTH), generator=generator)
    lengths = torch.randint(2, LENGTH + 1, (count, 1), generator=generator)
    inputs = inputs.where(torch.arange(LENGTH) < lengths, PADDING)
    return Rows(inputs, torch.randint(3, (count,), generator=generator))
