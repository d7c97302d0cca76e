"""papermill, with kernels that are reached by sockets in a folder of their own: ``python -m workflow.execute [argument ...]``.

Jupyter looks for five free ports before it starts a kernel, which finds one of them taken where another kernel or connection has been
faster, and dies: three in a thousand do where eight at a time are started. A socket's file has a name that nobody else takes.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from papermill.cli import papermill
from papermill.engines import NBClientEngine, papermill_engines
from traitlets.config import Config

#: The longest path that every system takes for a socket has 103 characters
LONGEST_FOLDER = 80


class _Sockets(NBClientEngine):
    """Execute a notebook as papermill does, and tell the kernel where to listen."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **kwargs: Any) -> Any:
        with tempfile.TemporaryDirectory(prefix="kernel") as folder:
            if sys.platform != "win32" and len(folder) <= LONGEST_FOLDER:  # else by ports
                kwargs["config"] = Config(KernelManager={"transport": "ipc", "connection_file": str(Path(folder, "kernel.json"))})
            return super().execute_managed_notebook(nb_man, kernel_name, **kwargs)


if __name__ == "__main__":
    papermill_engines.register(None, _Sockets)
    papermill()
