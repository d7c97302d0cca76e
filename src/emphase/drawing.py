"""What figures of micrographs and maps share: colours of phases, a scale bar, and texts that are no formulae.

Nothing here opens a figure or a file: a function gets the axes or the figure that it works on.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

#: For phases without a colour: six that the colour-blind can tell apart, after Okabe & Ito, "Color Universal Design" (2008)
_OTHER_COLOURS = ("#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#9A7B4F", "#5D3A9B")


def colours_of(phases: list[str], known: Mapping[str, str]) -> dict[str, str]:
    """A colour for every phase: that in ``known``, else one of a cycle that is safe for the colour-blind.

    Parameters
    ----------
    phases
        Names of phases.
    known
        Colours, hexadecimal, of some of them; no other phase gets one of these.

    Returns
    -------
    The colour of each phase, hexadecimal, by name.

    Examples
    --------
    >>> colours_of(["ferrite", "austenite"], {"ferrite": "#0072B2"})["austenite"]
    '#009E73'
    """
    spare = (c for c in _OTHER_COLOURS * len(phases) if c not in {known.get(p) for p in phases})
    return {p: known.get(p) or next(spare) for p in phases}


def _nice_length(most: float) -> float:
    """The longest of 1, 2, 5 times a power of ten that is at most ``most``.

    >>> _nice_length(0.7), _nice_length(34.0)
    (0.5, 20.0)
    """
    unit = 10.0 ** math.floor(math.log10(most))
    return max(float(f"{n * unit:.6g}") for n in (1, 2, 5) if n * unit <= most * 1.0001)


def scale_bar(ax: Any, pixel: float, unit: str = "nm", length: float | None = None) -> None:
    """Draw a bar with its length in the lower left corner of an image.

    Parameters
    ----------
    ax
        Axes of matplotlib that show the image.
    pixel
        The size in ``unit`` of a step of 1 on the axes.
    unit
        What stands behind the length.
    length
        Of the bar, in ``unit``; None takes a round number near 0.3 of the width.
    """
    (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
    left, low, width, height = min(x0, x1), max(y0, y1), abs(x1 - x0), abs(y1 - y0)  # y grows downwards in an image
    length = length or _nice_length(0.3 * width * pixel)
    left += 0.05 * width
    for colour, thickness in (("k", 5), ("w", 3)):
        ax.plot([left, left + length / pixel], [low - 0.06 * height] * 2, color=colour, lw=thickness)
    box = {"facecolor": "k", "alpha": 0.5, "lw": 0, "pad": 1.5}
    ax.text(left, low - 0.1 * height, f"{length:g} {unit}", color="w", fontsize=8, va="bottom", bbox=box)


_LATEX_OF_TICKS = re.compile(r"\$\\mathdefault\{[-−0-9.^{}]*(\\times[-−0-9.^{}]*)?\}\$")


def without_formulae(fig: Any) -> None:
    """Make all texts of a figure of matplotlib show a $ as it is, but the exponents of tick labels.

    Labels and names are no formulae, and matplotlib raises at one that has no end.
    """
    from matplotlib.text import Text

    for text in fig.findobj(Text):
        if "$" in text.get_text() and not _LATEX_OF_TICKS.fullmatch(text.get_text()):
            text.set_parse_math(False)


def as_files(fig: Any, suffixes: Iterable[str], dpi: float = 130) -> dict[str, bytes]:
    """A figure of matplotlib in several formats, cut to what is drawn, the same in each; it is laid out once and keeps that.

    Parameters
    ----------
    fig
        The figure; its layout engine is gone afterwards.
    suffixes
        Of the formats: ".png", ".svg", ".pdf".
    dpi
        Pixels an inch.

    Returns
    -------
    The content of each file, by suffix, without the time at which it was made.
    """
    from matplotlib import rcParams

    fig.set_dpi(dpi)
    fig.draw_without_rendering()
    fig.set_layout_engine("none")  # every format would lay it out twice again
    shown = fig.get_tightbbox().padded(rcParams["savefig.pad_inches"])
    made = {}
    for suffix in suffixes:
        dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None, "ModDate": None}}.get(suffix)
        drawn = io.BytesIO()
        fig.savefig(drawn, format=suffix[1:], dpi=dpi, bbox_inches=shown, facecolor="white", metadata=dates)
        made[suffix] = drawn.getvalue()
    return made
