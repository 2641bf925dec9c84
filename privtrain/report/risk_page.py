"""The risk of each record as a page, with the riskiest records as pictures or as numbers."""

import base64
import os
import struct
import zlib
from collections.abc import Sequence
from html import escape
from pathlib import Path

import torch
from torch import Tensor

from privtrain.core.failures import printable
from privtrain.core.validate import check_count
from privtrain.core.writing import fill, new_folder
from privtrain.report.risks import (
    ACCUSED_HEADER,
    GROUP_HEADER,
    PRIVATE,
    RECORD_HEADER,
    RecordRisks,
    accused_lines,
    explained,
    group_lines,
    record_line,
    title,
)

FILES = ("records.csv", "records.html")
"""What `save_risks` writes."""

_SHOWN_VALUES = 64
"""Of a record that is no picture, at most so many values are shown."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
.private { border: 2px solid #b3261e; padding: .6rem .9rem; font-weight: 600 }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #8a8f98 }
th:first-child, td:first-child { text-align: left }
figure { display: inline-block; margin: .5rem; vertical-align: top; max-width: 14rem }
figure img { width: 7rem; image-rendering: pixelated; border: 1px solid #8a8f98 }
figcaption, code { font-size: 13px; overflow-wrap: anywhere }
"""


def save_risks(
    risks: RecordRisks,
    folder: str | os.PathLike[str],
    *,
    riskiest: int = 0,
    picture: Sequence[int] | None = None,
    force: bool = False,
) -> Path:
    """Writes records.csv and records.html, which only their owner may read.

    Args:
        risks: The report.
        folder: Where to; new or empty. Never one that is published.
        riskiest: How many of the riskiest records are shown themselves.
        picture: The shape of an input as a picture, (height, width) or (channels, height, width);
            None for inputs that have such a shape themselves, or are no pictures.
        force: Whether to overwrite such a report.

    Returns:
        The folder.

    Raises:
        ValueError: If the inputs do not have as many values as the picture.
        DataError: If the folder holds something else, or cannot be written.
        PrivtrainError: If the disk is full.
    """
    page = risk_page(risks, riskiest=riskiest, picture=picture)
    with new_folder(Path(folder), ours=FILES, force=force) as fresh:
        for name, content in zip(FILES, (risks.to_csv(), page), strict=True):
            fill(fresh, name, content)
            (fresh / name).chmod(0o600)
    return Path(folder)


def risk_page(
    risks: RecordRisks, *, riskiest: int = 0, picture: Sequence[int] | None = None
) -> str:
    """The report as a page that needs nothing else.

    Args:
        risks: What is shown.
        riskiest: How many of the riskiest records are shown themselves.
        picture: The shape of an input as a picture; see `save_risks`.

    Returns:
        HTML; all texts are escaped.

    Raises:
        ValueError: If the inputs do not have as many values as the picture.
    """
    check_count(0, riskiest=riskiest)
    shape = _picture_shape(tuple(risks.inputs.shape[1:]), picture)
    places = [int(place) for place in risks.riskiest()]
    parts = [
        f"<h1>{escape(title(risks))}</h1>",
        f'<p class="private">{escape(PRIVATE)}</p>',
        _table(GROUP_HEADER, group_lines(risks)),
        _table(ACCUSED_HEADER, accused_lines(risks)),
        "<h2>The records with the largest d'</h2>",
        _table(RECORD_HEADER, [record_line(risks, place) for place in places]),
    ]
    if riskiest > 0:
        shown = (_figure(risks, int(place), shape) for place in risks.riskiest(riskiest))
        parts.append(f"<section>{''.join(shown)}</section>")
    parts += [f"<p>{escape(text)}</p>" for text in (*explained(risks), *risks.notes)]
    return printable(
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Risk of each record</title>'
        f"<style>{_STYLE}</style>\n" + "\n".join(parts) + "\n</html>\n"
    )


def _picture_shape(
    shape: tuple[int, ...], asked: Sequence[int] | None
) -> tuple[int, int, int] | None:
    """Channels, height and width of inputs that are pictures; None where they are none."""
    if asked is None:
        # A first dimension of one or three is one of colours, as models take them.
        pictures = len(shape) == 3 and shape[0] in (1, 3)
        return (shape[0], shape[1], shape[2]) if pictures else None
    sizes = tuple(int(size) for size in asked)
    full = (1, *sizes) if len(sizes) == 2 else sizes
    values = torch.Size(shape).numel()
    if len(full) != 3 or full[0] not in (1, 3) or torch.Size(full).numel() != values:
        raise ValueError(
            f"Expected picture={tuple(asked)} to be (height, width) or (channels, height, width), "
            f"channels 1 or 3, of {values} values, as an input of shape {shape} has."
        )
    return (full[0], full[1], full[2])


def _figure(risks: RecordRisks, place: int, shape: tuple[int, int, int] | None) -> str:
    values = risks.inputs[place].detach().cpu().double().flatten()
    said = f"{record_line(risks, place)[0]}, d' {risks.separation[place]:.2f}"
    if shape is None:
        numbers = ", ".join(f"{value:.4g}" for value in values[:_SHOWN_VALUES].tolist())
        more = ", ..." if len(values) > _SHOWN_VALUES else ""
        inside = f"<code>{escape(numbers + more)}</code>"
    else:
        source = base64.b64encode(png(values.view(shape))).decode()
        inside = f'<img alt="{escape(said)}" src="data:image/png;base64,{source}">'
    return f"<figure>{inside}<figcaption>{escape(said)}</figcaption></figure>"


def png(picture: Tensor) -> bytes:
    """A picture as a PNG file, its values spread over black to white.

    Args:
        picture: Shape `(1 or 3, height, width)`, real numbers.

    Source: PNG specification, third edition (W3C 2025), sections 5 and 11.
    """
    channels, height, width = picture.shape
    low, high = picture.min(), picture.max()
    levels = torch.nan_to_num((picture - low) / (high - low) * 255).round().to(torch.uint8)
    lines = levels.permute(1, 2, 0).reshape(height, width * channels).numpy()
    # Each line begins with its filter: 0, none.
    raw = b"".join(b"\0" + line.tobytes() for line in lines)
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _table(header: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    def row(cells: tuple[str, ...], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{row(header, 'th')}{''.join(row(line, 'td') for line in lines)}</table>"
