"""What a page was made from, and whether that has changed since: files by hash, choices by hand, versions of the code.

A result names its inputs with their SHA-256, its parameters and its versions. Inputs are hashed again for the pages; a recording that is
too large for that is compared by the time of its last change.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

from emphase.files import file_sha256, write_atomically
from helpers import PROJECT_ROOT, ResultError, code_sha256, hand_choice, phase_folders, samples_folder

from .text import _step_title, _without_paths

_HASHED_UP_TO = 256_000_000  # bytes of a file; a larger one is compared by the time of its last change


#: Keys of a result's versions that are no version of a library; results of the first release hold the hash of one file only, which says
#: nothing about the code as it is now.
_HASHES_OF_CODE = ("code_sha256", "helpers_sha256")


def _file_state(path: Path) -> tuple[int, int]:
    """Size in bytes and time of the last change in ns of a file, or of all files of a folder (.zspy)."""
    states = [p.stat() for p in (path.rglob("*") if path.is_dir() else [path]) if p.is_file()]
    return sum(s.st_size for s in states), max((s.st_mtime_ns for s in states), default=0)


class _Hashes:
    """SHA-256 of files, kept in ``results/.hashes.json`` by path, size and time: a recording is read once."""

    def __init__(self, results: Path):
        self._path = results / ".hashes.json"
        self._known: dict[str, str] = {}
        self._used: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError, TypeError):  # none yet, or broken off: all are made anew
            self._known = dict(json.loads(self._path.read_text(encoding="utf-8")))

    def of(self, path: Path) -> str:
        """The hash of a file's present content."""
        key = f"{os.path.abspath(path)} {_file_state(path)}"
        self._used[key] = self._used.get(key) or self._known.get(key) or file_sha256(path)
        return self._used[key]

    def save(self) -> None:
        """Write the hashes that were used in this run, where these are not the ones that the file holds."""
        if self._used != self._known:
            write_atomically(self._path, json.dumps(self._used, indent=0))


def _input_path(name: str, folder: Path, data_dir: str | Path) -> Path | None:
    """The file that the ``inputs`` of a result name; None where it is gone. ``folder`` is the sample's results folder."""
    crystals = [phases / Path(name).name for phases in phase_folders(data_dir)] if name.endswith(".cif") else []
    candidates = (samples_folder(data_dir) / folder.name / name, folder / name, PROJECT_ROOT / name, *crystals)
    return next((path for path in candidates if path.exists()), None)


def _inputs_now(result: dict, folder: Path, data_dir: str | Path, step: str, hashes: _Hashes) -> list[dict]:
    """Every input of a result: ``name``, ``sha256`` when it was read, and ``state`` of the file now ("" where it is the same)."""
    written_ns = (folder / f"{step}.json").stat().st_mtime_ns if result else 0
    found = []
    for name, sha256 in result.get("inputs", {}).items():
        path, state = _input_path(name, folder, data_dir), ""
        if path is None:
            state = "no longer here"
        else:
            size, changed_ns = _file_state(path)
            differs = changed_ns > written_ns if size > _HASHED_UP_TO else hashes.of(path) != sha256
            state = "changed since" if differs else ""
        found.append({"name": name, "sha256": sha256, "state": state})
    return found


def _stale_text(inputs: list[dict]) -> list[str]:
    """One sentence where inputs have changed since they were read, else none.

    >>> _stale_text([{"name": "ped.blo", "state": "changed since"}, {"name": "sample.yaml", "state": ""}])
    ['ped.blo has changed since this step was run. Run `make run` to bring it up to date.']
    """
    changed = [file["name"] for file in inputs if file["state"] == "changed since"]
    if not changed:
        return []
    named = ", ".join(changed[:-1]) + " and " * (len(changed) > 1) + changed[-1]
    return [f"{named} {'have' if len(changed) > 1 else 'has'} changed since this step was run. Run `make run` to bring it up to date."]


def _chosen_since(folder: Path, step: str, result: dict) -> list[str]:
    """One sentence where ``manual.yaml`` holds another choice for a step than its result was made with, else none."""
    try:
        now = hand_choice(folder, step)
    except ResultError as error:
        return [f"{error}."]
    made_with = {k: v for k, v in result.get("by_hand", {}).items() if k != "statement"}
    if not result or made_with == (now.model_dump() if now else {}):
        return []
    return [f"What is chosen by hand for {_step_title(step)} has changed since. Run `make run` to bring it up to date."]


def _code_version(step: str, versions: dict) -> str:
    """The version of the code that a result was made with, and the present one where it differs; "" where the result names none."""
    made_with = versions.get("code_sha256", "")
    now = code_sha256(step)[: len(made_with)] if made_with else ""
    return made_with and f"code {made_with}" + (f"; this page was made with another version, {now}" if now != made_with else "")


def _provenance(who: str, simulated: bool | None, step: str, result: dict, inputs: list[dict]) -> dict:
    """The foot of a page: facts, inputs, and what makes it older than the data; the date comes with the notebook."""
    kind = {True: "simulated data", False: "recorded data", None: "simulated and recorded data"}[simulated]
    parameters = {k: v for k, v in result.get("parameters", {}).items() if k != "sample_id"}
    versions = result.get("versions", {})
    facts = {
        "Sample": who,
        "Data": kind,
        "Parameters": ", ".join(f"{k} = {v}" for k, v in parameters.items()),
        "Versions": ", ".join(f"{k} {v}" for k, v in versions.items() if k not in _HASHES_OF_CODE),
        "By hand": result.get("by_hand", {}).get("statement", ""),
        "Workbook": _code_version(step, versions),
    }
    return {"facts": {k: v for k, v in facts.items() if v}, "inputs": inputs, "stale": _stale_text(inputs), "summary": f"{who}, {kind}"}


def _with_stale(provenance: dict, sentences: list[str]) -> dict:
    """Provenance with further sentences on what makes its page older than the data."""
    return provenance | {"stale": [*provenance["stale"], *sentences]}


def _executed_at(notebook: Any) -> str:
    """When papermill ended a notebook, in UTC to the minute; "" where it did not."""
    ended = notebook.metadata.get("papermill", {}).get("end_time") or ""
    return f"{ended[:10]} {ended[11:16]} UTC" if re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d", ended) else ""


def _dated(provenance: dict, notebook: Any, hidden: list[tuple[str, str]]) -> dict:
    """Provenance with the date of the execution, as a page shows it: without paths."""
    date = _executed_at(notebook)
    facts = {"Executed": date or "no date in the notebook"} | provenance["facts"]
    summary = provenance["summary"] + (f", executed {date}" if date else "")
    return provenance | {"facts": [(k, _without_paths(v, hidden)) for k, v in facts.items()], "summary": summary}
