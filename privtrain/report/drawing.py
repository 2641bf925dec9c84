"""What all pictures share: styles, axes, and SVG that sits inside a page.

Text stays text and takes the colour of the page, so that pictures are small, can be searched,
and suit light and dark pages. The same comparison gives the same bytes.
"""

import io
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from privtrain.report import cells
from privtrain.report.summary import unique

# No colour that a trainer may have: the replacement must not hit a line.
INK = "#010203"
"""Stands for the text colour of the page, which is put in its place afterwards."""

LINES = "#8a8f98"
"""Axes and grids; readable on light and on dark pages."""

COLOURS = (
    "#1A7FC1", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7F7F7F",
)  # fmt: skip
"""Told apart also by readers with a colour vision deficiency (after Okabe and Ito
2008; the blue is lighter, for dark pages)."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":")

LONGEST_ENTRY = 40
"""Longer names are cut in pictures; tables hold more of them."""


@dataclass(frozen=True)
class Style:
    """How a label is drawn, in every picture of a page."""

    colour: str
    marker: str
    dash: str


def styles(labels: Iterable[str]) -> dict[str, Style]:
    """A style for each label, by its place among the labels."""
    return {
        label: Style(
            COLOURS[index % len(COLOURS)],
            MARKERS[index % len(MARKERS)],
            # Only the ninth label and later ones: dashes are for where colours run out.
            DASHES[index // len(COLOURS) % len(DASHES)],
        )
        for index, label in enumerate(unique(labels))
    }


def new_figure(
    width: float, height: float, panels: int = 1, columns: int | None = None
) -> tuple[Any, list[Any]]:
    """A figure outside matplotlib's global state, with panels side by side.

    Args:
        width: In inches.
        height: In inches.
        panels: How many axes.
        columns: How many of them stand side by side; None for all.

    Returns:
        The figure and its axes.
    """
    # Imported late, and without pyplot: `import privtrain` stays quick, and the user's own figures
    # and settings are left alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    across = columns or panels
    down = -(-panels // across)
    all_axes = [figure.add_subplot(down, across, number + 1) for number in range(panels)]
    for axes in all_axes:
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(LINES)
        axes.tick_params(colors=LINES, labelcolor=INK, labelsize=9)
        axes.grid(True, color=LINES, alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
        for text in (axes.xaxis.label, axes.yaxis.label):
            text.set(color=INK, fontsize=9.5)
    return figure, all_axes


def add_title(axes: Any, text: str) -> None:
    """A title at the left end of the axes."""
    axes.set_title(entry(text), loc="left", color=INK, fontsize=9.5)


def entry(text: str) -> str:
    """A name for a legend or an axis: short, and never hidden for its underscore."""
    short = cells.shortened(text, LONGEST_ENTRY)
    # matplotlib leaves names with a leading underscore out of legends; behind a space of no width
    # they are shown.
    return f"\u200b{short}" if short.startswith("_") else short


def add_legend(axes: Any, source: Any = None) -> None:
    """A legend to the right of the axes, where it covers nothing.

    Args:
        axes: Where it stands.
        source: The axes whose lines it names; those of `axes` where None.
    """
    handles, names = (source or axes).get_legend_handles_labels()
    if handles:
        axes.legend(
            handles, names, loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False,
            fontsize=9, labelcolor=INK, handlelength=2.4,
        )  # fmt: skip


def plain_log(axis: Any, words: Any, subs: tuple[float, ...] = (1.0,)) -> None:
    """Labels the ticks of a log axis by a function; matplotlib's own labels are formulas."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, position: words(value)))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())


class Picture(str):
    """A picture as the SVG element of a page, which can be written into files, too.

    Args:
        svg: The element, without XML header.
        figure: What was drawn.
    """

    figure: Any

    def __new__(cls, svg: str, figure: Any) -> "Picture":
        made = super().__new__(cls, svg)
        made.figure = figure
        return made

    @property
    def files(self) -> dict[str, bytes]:
        """File ending to contents: SVG and PDF, which stand alone, for papers and slides."""
        svg = self.replace("currentColor", "#000000")
        header = '<?xml version="1.0" encoding="utf-8"?>\n'
        return {
            "svg": (header + svg).encode("utf-8", "backslashreplace"),
            "pdf": _to_pdf(self.figure),
        }


def _to_pdf(figure: Any) -> bytes:
    from matplotlib import rc_context

    # Without a date the same picture gives the same bytes.
    settings: Any = {"text.parse_math": False}
    metadata = {"CreationDate": None, "Creator": None, "Producer": None}
    file = io.BytesIO()
    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        figure.savefig(file, format="pdf", bbox_inches="tight", pad_inches=0.04, metadata=metadata)
    return file.getvalue()


def to_svg(figure: Any, name: str, title: str) -> Picture:
    """A figure as an SVG element for a page.

    Args:
        figure: What was drawn.
        name: Starts all ids, so that pictures on one page do not share any.
        title: Read aloud to those who cannot see the picture.

    Returns:
        An `<svg>` element without XML header.
    """
    from markupsafe import escape
    from matplotlib import rc_context
    from matplotlib.text import Text

    text = io.StringIO()
    # A label such as "$5" is a name, not a formula.
    for written in figure.findobj(Text):
        written.set_parse_math(False)
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False}
    with rc_context(settings), warnings.catch_warnings():
        # The browser draws the text, with fonts that may well have the glyph.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        # Once for all files: it would be laid out anew, twice, for each of them.
        figure.get_layout_engine().execute(figure)
        figure.set_layout_engine("none")
        figure.savefig(
            text, format="svg", transparent=True, bbox_inches="tight", pad_inches=0.04,
            metadata={"Date": None, "Creator": None},
        )  # fmt: skip
    svg = text.getvalue()
    # An element within HTML has no XML header; metadata would change with versions.
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(INK, "currentColor").replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans'")
    return Picture(
        svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1), figure
    )
