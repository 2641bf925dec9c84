"""The page of risks: pictures are what the inputs are, and texts are escaped."""

import base64
import re
import stat
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from privtrain.core.errors import DataError
from privtrain.report.risk_page import png, risk_page, save_risks
from privtrain.report.risks import PRIVATE
from tests.report.test_risks import RISKS


def read(content: bytes) -> np.ndarray:
    """The pixels of a PNG file with 8 bits a channel and unfiltered lines."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    place, chunks = 8, {}
    while place < len(content):
        (size,) = struct.unpack(">I", content[place : place + 4])
        kind, data = content[place + 4 : place + 8], content[place + 8 : place + 8 + size]
        (checked,) = struct.unpack(">I", content[place + 8 + size : place + 12 + size])
        assert checked == zlib.crc32(kind + data)
        chunks[kind] = data
        place += 12 + size
    width, height, depth, colours = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert depth == 8
    raw = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), dtype=np.uint8)
    lines = raw.reshape(height, -1)
    assert (lines[:, 0] == 0).all()
    return lines[:, 1:].reshape(height, width, 1 if colours == 0 else 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_holds_the_values(channels: int) -> None:
    values = torch.arange(channels * 6.0).view(channels, 2, 3)
    expected = (values / values.max() * 255).round().permute(1, 2, 0).numpy()
    assert np.array_equal(read(png(values)), expected)


def test_a_picture_of_one_value_is_black() -> None:
    assert not read(png(torch.full((1, 2, 2), 7.0))).any()


def test_the_riskiest_are_shown_as_pictures_or_as_numbers() -> None:
    page = risk_page(RISKS, riskiest=1, picture=(2, 2))
    (source,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    # Record 3 holds 12 to 15.
    assert read(base64.b64decode(source))[..., 0].tolist() == [[0, 85], [170, 255]]
    assert "<code>12, 13, 14, 15</code>" in risk_page(RISKS, riskiest=1)
    assert "<code>" not in risk_page(RISKS)


def test_inputs_of_the_shape_of_pictures_are_pictures() -> None:
    assert "<img" in risk_page(replace(RISKS, inputs=torch.rand(4, 1, 5, 5)), riskiest=2)


@pytest.mark.parametrize("picture", [(3, 2), (2, 2, 1), (4,), (2, 1, 2)])
def test_a_picture_of_other_size_is_refused(picture: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="picture="):
        risk_page(RISKS, riskiest=1, picture=picture)


def test_texts_are_escaped() -> None:
    page = risk_page(replace(RISKS, notes=("<script>",), holder=("<b>",) * 4), riskiest=1)
    assert "<script>" not in page and "<b>" not in page


def test_only_its_owner_may_read_what_is_written(tmp_path: Path) -> None:
    written = save_risks(RISKS, tmp_path / "risks", riskiest=2, picture=(2, 2))
    for name in ("records.csv", "records.html"):
        assert stat.S_IMODE((written / name).stat().st_mode) == 0o600
    assert PRIVATE in (written / "records.html").read_text()
    with pytest.raises(DataError, match="force=True"):
        save_risks(RISKS, written)
    save_risks(RISKS, written, force=True)
    assert "<img" not in (written / "records.html").read_text()


def test_it_goes_into_no_folder_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text("{}")
    with pytest.raises(DataError, match="holds comparison"):
        save_risks(RISKS, tmp_path, force=True)
