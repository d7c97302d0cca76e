"""TODO."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any


def write_atomically(path: str | Path, content: str | bytes) -> Path:
    """Write a file so that a reader sees the old content or the new, never a part of it."""
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


def csv_of(table: Any, **options: Any) -> str:
    """A pandas table as CSV. A text is one line, with an apostrophe where a spreadsheet would take it for a formula; numbers stay.

    >>> import pandas as pd
    >>> csv_of(pd.DataFrame({"name": ["=1+1", "a"], "x": [-1.5, 2.0]}))
    "name,x\\n'=1+1,-1.5\\na,2.0\\n"
    """

    def told(value: Any) -> Any:
        line = " ".join(value.split()) if isinstance(value, str) else value
        return f"'{line}" if isinstance(line, str) and line.startswith(("=", "+", "-", "@")) else line

    return table.map(told).to_csv(index=False, **options)
