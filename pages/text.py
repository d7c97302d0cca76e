"""A page before it is rendered, and texts as pages show them: titles of steps, and no path of this machine."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from helpers import PROJECT_ROOT, Sample, samples_folder


@dataclass(frozen=True)
class _Page:
    """A page to be rendered: the executed notebook, where the page goes below html/, and what stands around it.

    ``depends`` holds what else it is made of: where that has not changed, the page is up to date. ``maps`` is the sample of a map page,
    which shows no notebook; ``explore`` is the address of the map page that stands for the explorers of a notebook.
    """

    notebook: Path
    target: str
    title: str
    sample: str
    simulated: bool
    provenance: dict
    navigation: list[dict] = field(default_factory=list)
    home: str = ""
    explore: str = ""
    cards: list[dict] = field(default_factory=list)
    more: list[dict] = field(default_factory=list)
    depends: tuple = ()
    maps: Sample | None = None


def _step_title(step: str) -> str:
    """The title of a step, with its abbreviations in capitals.

    >>> _step_title("05_ped_calibration")
    '05 PED calibration'
    """
    words = re.sub(r"\b(haadf|ped|eds|eels|stem|tem)\b", lambda found: found[0].upper(), step.replace("_", " ")).replace("cryo ", "cryo-")
    return words if words[3:4].isupper() else words[:3] + words[3:4].upper() + words[4:]


_MAP_STEP = "06_ped_matching"


def _hidden_paths(results: Path, data_dir: str | Path) -> list[tuple[str, str]]:
    """Paths of this machine and the word that replaces each on a page, the longest first."""
    known = {PROJECT_ROOT: ".", results: "results", Path.home(): "~", Path(tempfile.gettempdir()): "tmp"}
    known |= {samples_folder(data_dir): "samples", samples_folder(data_dir).parent: "data"}
    absolute = {os.path.abspath(path): word for path, word in known.items()}
    absolute |= {os.path.realpath(path): word for path, word in absolute.items()}
    return sorted(((p, word) for p, word in absolute.items() if len(p) > 1), key=lambda pair: -len(pair[0]))


def _without_paths(text: str, hidden: list[tuple[str, str]]) -> str:
    """A text without absolute paths: known folders are replaced by their word, other paths by the name of the file.

    >>> _without_paths("in /home/ada/work/x/a.tif and /usr/lib/python3/zlib.py", [("/home/ada/work", "data")])
    'in data/x/a.tif and zlib.py'
    """
    for path, word in hidden:
        text = text.replace(path, word)
    return re.sub(r"(?<![\w./:~<-])/(?:[\w.+@-]+/)+([\w.+@-]*)", r"\1", text)
