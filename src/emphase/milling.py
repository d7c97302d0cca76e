"""What somebody wrote down about the milling of a lamella against the images that the instrument saved itself.

Compared are voltages, their order, stage tilts and the instrument's name (`contradictions`). Currents are not: one looks with less than one
mills with. An image proves its voltage; a voltage without an image may have had none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from .fib_images import FibImage, ion_settings

#: Voltages are the same within this share, which is more than what a high tension differs from its nominal value.
SAME_VOLTAGE = 0.03
SAME_TILT_DEG = 1.0

_MAKERS = {"FEI": {"fei", "thermo", "fisher", "thermofisher", "tfs"}, "Zeiss": {"zeiss", "carl"}, "Tescan": {"tescan"}}
_SAID_OF_ANY = {"fib", "sem", "fibsem", "dualbeam", "scientific", "microscope"}.union(*_MAKERS.values())


class MillingSetting(Protocol):
    """One milling step as somebody wrote it down."""

    stage: str
    milling_voltage_kV: float | None
    stage_tilt_deg: float | None


class Contradiction(NamedTuple):
    """Where images and a written record differ: "warning" or "note", what, and why it matters."""

    level: str
    text: str
    reason: str


def _same_voltage(one_kV: float | None, other_kV: float | None) -> bool:
    return one_kV is not None and other_kV is not None and math.isclose(one_kV, other_kV, rel_tol=SAME_VOLTAGE)


def contradictions(
    images: Sequence[FibImage], steps: Sequence[MillingSetting], instrument: str | None = None
) -> list[Contradiction]:  # fmt: skip
    """Where images of the ion beam contradict the milling steps, in order, and the instrument that somebody wrote down.

    Parameters
    ----------
    images
        Of both beams; those of the electron beam count for the instrument alone.
    steps
        As written, in order; those without a voltage are passed over.
    instrument
        As written; a name agrees that shares a word with the image's, and a number where both have one.

    Returns
    -------
    Contradictions
        A voltage that no step has, one that no image shows, an order that the steps do not have, another tilt, another instrument.
    """
    found = []
    for image in {(i.maker, i.instrument): i for i in images}.values() if instrument else ():
        if not _same_instrument(str(instrument), image):
            text = f"The instrument is {image.instrument or image.maker} in {image.file} and {instrument} in the record"
            found.append(Contradiction("warning", text, "one of the two belongs to another lamella or is a slip of the pen"))
    ion = [image for image in ion_settings(images) if image.voltage_kV is not None]
    written = [step for step in steps if step.milling_voltage_kV is not None]
    return found + _voltage_contradictions(ion, written) + _tilt_contradictions(ion, written) if ion and written else found


def _voltage_contradictions(ion: list[FibImage], steps: list[MillingSetting]) -> list[Contradiction]:
    found = []
    unwritten = [i for i in ion if not any(_same_voltage(i.voltage_kV, s.milling_voltage_kV) for s in steps)]
    if unwritten:
        text = f"No step has the ion voltage of {', '.join(f'{i.file} ({i.voltage_kV:g} kV)' for i in unwritten)}"
        found.append(Contradiction("warning", text, "the image proves that the beam was on the specimen at that voltage"))
    unseen = [s for s in steps if not any(_same_voltage(i.voltage_kV, s.milling_voltage_kV) for i in ion)]
    if unseen:
        text = f"No image of the ion beam shows the voltage of {', '.join(f'{s.stage} ({s.milling_voltage_kV:g} kV)' for s in unseen)}"
        found.append(Contradiction("note", text, "the step may have no image, or its voltage is another one"))
    at, before = 0, None
    for image in ion:
        having = [k for k, s in enumerate(steps) if _same_voltage(image.voltage_kV, s.milling_voltage_kV)]
        if having and image.acquired and before and max(having) < at:
            text = f"{image.file} at {image.voltage_kV:g} kV is later than {before.file} at {before.voltage_kV:g} kV; the steps say earlier"
            found.append(Contradiction("warning", text, "a beam of that voltage was on the specimen again, or the steps are out of order"))
        if having and max(having) >= at:
            at, before = next(k for k in having if k >= at), image
    return found


def _tilt_contradictions(ion: list[FibImage], steps: list[MillingSetting]) -> list[Contradiction]:
    found = []
    for step in steps:
        tilts = [i.stage_tilt_deg for i in ion if _same_voltage(i.voltage_kV, step.milling_voltage_kV) and i.stage_tilt_deg is not None]
        if step.stage_tilt_deg is not None and tilts and min(abs(t - step.stage_tilt_deg) for t in tilts) > SAME_TILT_DEG:
            shown = ", ".join(f"{tilt:.1f}°" for tilt in dict.fromkeys(tilts))
            text = f"{step.stage} has a stage tilt of {step.stage_tilt_deg:g}°, images at its voltage show {shown}"
            found.append(Contradiction("warning", text, "the angle of the beam to the lamella follows from it"))
    return found


def _same_instrument(written: str, image: FibImage) -> bool:
    """Whether a written name can be that of an image's instrument: its maker, a word and a number that both have must not differ."""
    ours, theirs = (set(re.findall(r"[a-z0-9]+", name.lower())) for name in (written, image.instrument or ""))
    if ours & set().union(*_MAKERS.values()) and not ours & _MAKERS[image.maker]:
        return False
    ours, theirs = ours - _SAID_OF_ANY, theirs - _SAID_OF_ANY
    for parts in ((ours, theirs), tuple({w for w in words if re.search(r"\d", w)} for words in (ours, theirs))):
        if all(parts) and not parts[0] & parts[1]:
            return False
    return True
