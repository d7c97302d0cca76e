"""Files that are written as a whole, hashed, and locked against other processes; tables as CSV that a spreadsheet cannot execute."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any


def write_atomically(path: str | Path, content: str | bytes) -> Path:
    """Write a file so that a reader sees the old content or the new, never a part of it.

    Parameters
    ----------
    path
        The file; its folder is made where it is absent.
    content
        Text, written as UTF-8, or bytes.

    Returns
    -------
    The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal; of a folder (.zspy), that of its files' names and hashes."""
    path = Path(path)
    if path.is_dir():
        listing = [f"{file_sha256(p)}  {p.relative_to(path).as_posix()}\n" for p in sorted(path.rglob("*")) if p.is_file()]
        return hashlib.sha256("".join(listing).encode()).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lock_file(path: Path, *, wait_s: float = 0.0) -> int:
    """Lock a file against other processes until its descriptor is closed or this process ends.

    Parameters
    ----------
    path
        The file; it is made where it is absent.
    wait_s
        How long to wait for another process that holds the lock, in seconds.

    Returns
    -------
    The open file descriptor, which holds the lock.

    Raises
    ------
    BlockingIOError
        Where another process still holds the lock after that time.
    """
    import fcntl

    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    until = time.monotonic() + wait_s
    try:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return file
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise
                time.sleep(0.05)
    except BaseException:
        os.close(file)
        raise


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock (`lock_file`) of a file ``.lock`` in a folder or below it."""
    for path in folder.rglob(".lock"):
        try:
            os.close(lock_file(path))
        except BlockingIOError:
            return True
    return False


def csv_of(table: Any, **options: Any) -> str:
    """A pandas table as CSV in which no text is a formula.

    A text becomes one line, with an apostrophe in front where a spreadsheet would take it for a formula; numbers stay.
    The ``options`` go to `pandas.DataFrame.to_csv`.

    >>> import pandas as pd
    >>> csv_of(pd.DataFrame({"name": ["=1+1", "a"], "x": [-1.5, 2.0]}))
    "name,x\\n'=1+1,-1.5\\na,2.0\\n"
    """

    def without_formula(value: Any) -> Any:
        line = " ".join(value.split()) if isinstance(value, str) else value
        return f"'{line}" if isinstance(line, str) and line.startswith(("=", "+", "-", "@")) else line

    return table.map(without_formula).to_csv(index=False, **options)
