"""papermill, with kernels that are reached by sockets in a folder of their own: ``python -m workflow.execute [argument ...]``.

Jupyter looks for five free ports before it starts a kernel, which finds one of them taken where another kernel or connection has been
faster, and dies: three in a thousand do where eight at a time are started. A socket's file has a name that nobody else takes.
"""

import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from papermill.cli import papermill
from papermill.engines import NBClientEngine, papermill_engines
from traitlets.config import Config

#: The longest path that every system takes for a socket has 103 characters
LONGEST_FOLDER = 80


def _takes_sockets(folder: str) -> bool:
    """Whether sockets of a kernel can be made in a folder: not on Windows, nor on some network drives."""
    if sys.platform == "win32" or len(os.fsencode(folder)) > LONGEST_FOLDER:
        return False
    try:
        with socket.socket(socket.AF_UNIX) as tried:
            tried.bind(f"{folder}/tried")
    except OSError:
        return False
    return True


class _Sockets(NBClientEngine):
    """Execute a notebook as papermill does, and tell the kernel where to listen."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **kwargs: Any) -> Any:
        with tempfile.TemporaryDirectory(prefix="kernel") as folder:
            if _takes_sockets(folder):  # else by ports
                kwargs["config"] = Config(KernelManager={"transport": "ipc", "connection_file": str(Path(folder, "kernel.json"))})
            return super().execute_managed_notebook(nb_man, kernel_name, **kwargs)


if __name__ == "__main__":
    papermill_engines.register(None, _Sockets)
    papermill()
