"""A page as Chromium prints it, and the words on each sheet; no further tool is needed."""

import re
import shutil
import subprocess
import zlib
from pathlib import Path

import pytest

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="chromium is missing (apt-get install chromium): no report was printed"
)


def print_to_pdf(page: Path, target: Path) -> bytes:
    """Prints a page without anybody in front of it."""
    assert BROWSER is not None
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *(f"--user-data-dir={target.parent / 'browser'}", "--no-pdf-header-footer"),
        *(f"--print-to-pdf={target}", page.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, timeout=180)
    assert target.exists(), done.stderr.decode(errors="replace")[-2000:]
    return target.read_bytes()


def sheets(pdf: bytes) -> list[str]:
    """The text on each sheet, in the order in which it is drawn; glyphs beside a sheet are none."""
    objects = {
        int(number): body for number, body in re.findall(rb"(?s)\b(\d+) 0 obj\b(.*?)\bendobj", pdf)
    }
    fonts = {}
    for number, body in objects.items():
        found = re.search(rb"/ToUnicode (\d+) 0 R", body)
        if found:
            fonts[number] = _characters(_stream(objects[int(found.group(1))]))
    texts = []
    for body in objects.values():
        if not re.search(rb"/Type\s*/Page\b", body):
            continue
        named = re.findall(rb"/(F\d+) (\d+) 0 R", _resources(body, objects))
        known = {name: fonts[int(number)] for name, number in named if int(number) in fonts}
        contents = re.search(rb"/Contents (\d+) 0 R", body)
        assert contents is not None
        texts.append(_shown(_stream(objects[int(contents.group(1))]), known))
    return texts


def _resources(page: bytes, objects: dict[int, bytes]) -> bytes:
    inside = page
    for reference in re.findall(rb"/(?:Resources|Font) (\d+) 0 R", page):
        inside += objects[int(reference)]
    return inside


def _stream(body: bytes) -> bytes:
    found = re.search(rb"(?s)stream\r?\n(.*?)\r?\nendstream", body)
    assert found is not None
    return zlib.decompress(found.group(1)) if b"/FlateDecode" in body else found.group(1)


def _characters(table: bytes) -> dict[int, str]:
    """Glyph to text, from a font's table of code points."""
    known = {}
    for block in re.findall(rb"(?s)beginbfchar(.*?)endbfchar", table):
        for glyph, text in re.findall(rb"<([0-9A-Fa-f]+)>\s*<([0-9A-Fa-f]+)>", block):
            known[int(glyph, 16)] = bytes.fromhex(text.decode()).decode("utf-16-be")
    for block in re.findall(rb"(?s)beginbfrange(.*?)endbfrange", table):
        for first, last, text in re.findall(
            rb"<([0-9A-Fa-f]+)>\s*<([0-9A-Fa-f]+)>\s*<([0-9A-Fa-f]+)>", block
        ):
            start = int(text, 16)
            for place, glyph in enumerate(range(int(first, 16), int(last, 16) + 1)):
                known[glyph] = chr(start + place)
    return known


def _shown(contents: bytes, fonts: dict[bytes, dict[int, str]]) -> str:
    """What a sheet's operators draw: `/F4 12 Tf`, `<0012> Tj`, `[<0012> -5 <0013>] TJ`."""
    text, font = [], dict[int, str]()
    pattern = (
        rb"/(F\d+) [\d.]+ Tf|(<[0-9A-Fa-f]*>)\s*Tj|\[((?:<[0-9A-Fa-f]*>|[-\d.\s])*)\]\s*TJ|\bET\b"
    )
    for name, single, several in re.findall(pattern, contents):
        if name:
            font = fonts.get(name, {})
        for glyphs in re.findall(rb"<([0-9A-Fa-f]*)>", single or several):
            text += [font.get(int(glyphs[i : i + 4], 16), "?") for i in range(0, len(glyphs), 4)]
        if not (name or single or several):
            text.append(" ")
    drawn = " ".join("".join(text).split())
    for ligature, letters in (("ﬁ", "fi"), ("ﬂ", "fl"), ("ﬀ", "ff"), ("ﬃ", "ffi"), ("ﬄ", "ffl")):
        drawn = drawn.replace(ligature, letters)
    return drawn
