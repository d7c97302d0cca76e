"""Whether somebody is there to choose, and what becomes of a choice made by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def in_jupyterlab() -> bool:
    """Whether this cell runs in JupyterLab, which names the cell to the kernel; batch runs skip explorers.

    Returns
    -------
    bool
    """
    from IPython import get_ipython

    shell = get_ipython()
    parent: dict[str, Any] = getattr(shell, "get_parent", dict)()
    return shell is not None and "cellId" in parent.get("metadata", {})


@dataclass(frozen=True)
class HandChoices:
    """Whose recording an explorer shows, and what becomes of a choice made in it.

    Parameters
    ----------
    title : str
        Title of the figure.
    keep : callable, optional
        ``keep(parameters, reason)`` stores a choice and returns a sentence for the user. Without it there is no button for it.
    forget : callable, optional
        ``forget()`` deletes what was stored and returns a sentence for the user. Without it there is no button for it.
    kept : str
        What was chosen before, as a sentence.
    """

    title: str = ""
    keep: Callable[[dict[str, Any], str], str] | None = None
    forget: Callable[[], str] | None = None
    kept: str = ""
