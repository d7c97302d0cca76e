"""Files that are written apart and take their places together.

A reader of a folder sees all files of the run before or all of the next one, never some of each: files are staged in a hidden folder beside
their places and moved at the end, under a lock that other writers of the folder wait for. What a killed process staged is taken away by the
next one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from .files import is_locked, lock_file, write_atomically

_PREFIX = ".staged-"
_ASIDE = ".old-"
_WAIT_S = 60  # for another process that publishes into the same folder


class StagedFiles:
    """Files of one run on their way into a folder.

    Parameters
    ----------
    folder
        Where the files go; it is made where it is not there.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{_PREFIX}*"):  # by a process that was killed
            if not is_locked(left):
                for aside in left.glob(f"{_ASIDE}*"):  # moved away for one that did not come
                    if not (folder / aside.name.removeprefix(_ASIDE)).exists():
                        os.replace(aside, folder / aside.name.removeprefix(_ASIDE))
                shutil.rmtree(left, ignore_errors=True)
        self._folder = folder
        self._staging = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))
        self._lock = lock_file(self._staging / ".lock")

    def path(self, name: str) -> Path:
        """Where to write the file, or the folder, that is to be ``name`` in the folder."""
        return self._staging / name

    def publish(self, texts: Mapping[str, str], withdrawn: Iterable[str] = ()) -> None:
        """Move all staged files to their places, remove those ``withdrawn``, write ``texts`` by name, and end the staging."""
        lock = lock_file(self._folder / ".publish.lock", wait_s=_WAIT_S)
        try:
            for path in sorted(self._staging.glob("[!.]*")):
                place = self._folder / path.name
                if place.exists() and (place.is_dir() or path.is_dir()):  # a folder cannot be written over
                    os.replace(place, self._staging / f"{_ASIDE}{path.name}")
                os.replace(path, place)
            for name in withdrawn:
                if (self._folder / name).is_dir():
                    os.replace(self._folder / name, self._staging / f"withdrawn-{name}")
                else:
                    (self._folder / name).unlink(missing_ok=True)
            for name, text in texts.items():
                write_atomically(self._folder / name, text)
        finally:
            os.close(lock)
        os.close(self._lock)
        shutil.rmtree(self._staging)
