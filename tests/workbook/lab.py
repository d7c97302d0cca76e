"""JupyterLab in a real browser, for tests: open a notebook, run all, use what its cells show, say what changed.

`LabServer` runs ``jupyter lab`` on a free port of this machine with a separate configuration, `open_browser` a Chromium that reaches
nothing else, and `Lab` is the page in it. A `Cell` is one cell of the open notebook with the controls that it shows, a `Plot` one ipympl
canvas in it. Nothing here waits for a fixed time: every wait is for a condition, and says what it waited for where that never came.
"""

import ast
import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import psutil

import helpers
import pages.share
from workflow import warm

if TYPE_CHECKING:  # pytest imports this file for its doctests where playwright may be missing
    from playwright.sync_api import Browser, Locator, Page

ROOT = helpers.PROJECT_ROOT
WAIT_S = 20.0
VIEWPORT = {"width": 1400, "height": 1000}

#: What JupyterLab itself writes to the console as an error, which says nothing about a notebook: pattern, why.
CONSOLE_NOISE: dict[str, str] = {}

#: Settings of JupyterLab for tests: every cell is in the page, no news, nothing saved behind the test's back.
SETTINGS = {
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none", "scrollPastEnd": False},
    "@jupyterlab/apputils-extension:notification": {"checkForUpdates": False, "fetchNews": "false", "doNotDisturbMode": True},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}
DISABLED = [
    "@jupyterlab/apputils-extension:announcements",
    "@jupyterlab/extensionmanager-extension",
    "@jupyterlab/terminal-extension",
]


class LabError(AssertionError):
    """What the page did not do, or the error in which a cell ended."""


def wait_for(condition: Callable[[], Any], what: str, timeout: float = WAIT_S, pause: Callable[[float], Any] = time.sleep) -> Any:
    """The first true value of ``condition()``; `LabError` with ``what`` where none came in time."""
    end, seconds = time.monotonic() + timeout, 0.05
    while not (value := condition()):
        if time.monotonic() > end:
            raise LabError(f"waited {timeout:.0f} s for {what}")
        pause(seconds)
        seconds = min(1.2 * seconds, 0.5)
    return value


# --------------------------------------------------------------------------------------
# Server and browser
# --------------------------------------------------------------------------------------


def lab_environment(folder: Path) -> dict[str, str]:
    """The environment of a server that reads and writes no setting of the user, and whose kernels import this project's helpers."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "JPY_", "MPLBACKEND", "PYTEST_", warm.ADDRESS))}
    folders = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "IPYTHONDIR": "ipython",
        "MPLCONFIGDIR": "matplotlib",
    }
    folders = {name: str(folder / sub) for name, sub in folders.items()}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return kept | folders | {"PYTHONPATH": path}


def write_configuration(folder: Path) -> None:
    """JupyterLab's settings in the folder that `lab_environment` names, and the list of fonts, which takes seconds to make."""
    import matplotlib.font_manager

    files = {"labconfig/page_config.json": {"disabledExtensions": dict.fromkeys(DISABLED, True)}}
    for plugin, settings in SETTINGS.items():
        files[f"lab/user-settings/{plugin.replace(':', '/')}.jupyterlab-settings"] = settings
    for name, content in files.items():
        path = folder / "config" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    (folder / "matplotlib").mkdir()
    for fonts in Path(matplotlib.get_cachedir()).glob("fontlist-*.json"):
        shutil.copy(fonts, folder / "matplotlib")


class LabServer:
    """``jupyter lab`` for a folder of notebooks; a context manager that ends the server and every kernel that it started."""

    def __init__(self, folder: Path):
        self.folder, self.root, self.token = folder, folder / "root", secrets.token_hex(16)
        self.log = folder / "server.log"
        self.process: subprocess.Popen | None = None
        self.warm = contextlib.ExitStack()
        self.url = ""

    def __enter__(self) -> "LabServer":
        self.root.mkdir(parents=True)
        write_configuration(self.folder)
        options = {
            "ServerApp.ip": "127.0.0.1",
            "ServerApp.port": 0,
            "ServerApp.root_dir": self.root,
            "ServerApp.terminals_enabled": False,
            "ServerApp.allow_root": True,
            "ServerApp.open_browser": False,
            "IdentityProvider.token": self.token,
            "LanguageServerManager.autodetect": False,  # it asks npm, which writes to the home folder
            "LabApp.extension_manager": "readonly",
            "LabApp.news_url": None,
            "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
            "LabApp.expose_app_in_browser": True,
        }
        environment = lab_environment(self.folder)
        environment |= self.warm.enter_context(warm.serving(environment))
        command = [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=self.root, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self.url = wait_for(self._answers, "jupyter lab to answer", 60)
        except LabError as error:
            self.__exit__()
            raise LabError(f"{error}; its log ends with:\n{self.log.read_text()[-3000:]}") from None
        except BaseException:
            self.__exit__()
            raise
        return self

    def _answers(self) -> str:
        """The server's address once it answers there; the file in which it says its port comes first."""
        if self.process.poll() is not None:
            raise LabError(f"jupyter lab ended with {self.process.returncode}")
        for path in (self.folder / "runtime").glob("jpserver-*.json"):
            with contextlib.suppress(OSError, ValueError):
                url = json.loads(path.read_text())["url"]
                with urllib.request.urlopen(f"{url}api/status?token={self.token}", timeout=5):
                    return url
        return ""

    def __exit__(self, *_: object) -> None:
        """A SIGTERM lets the server end its kernels; what is left of its family is killed."""
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(self.process.pid).children(recursive=True)
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
            self.process.kill()
            self.process.wait()
            _, left = psutil.wait_procs(family, timeout=5)
            for process in left:
                process.kill()
            psutil.wait_procs(left, timeout=5)
        self.warm.close()


@contextlib.contextmanager
def open_browser() -> Iterator["Browser"]:
    """Chromium without a window; the only host that it can reach is this machine."""
    from playwright.sync_api import sync_playwright

    args = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--no-proxy-server"]
    args.append("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=pages.share.find_chromium(), args=args)
        try:
            yield browser
        finally:
            browser.close()


# --------------------------------------------------------------------------------------
# Notebooks
# --------------------------------------------------------------------------------------


def with_parameters(source: str, parameters: dict[str, Any]) -> str:
    """A parameters cell with other literals; its comments stay."""
    lines = source.encode().split(b"\n")
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and (name := node.targets[0].id) in parameters:
            value = node.value
            if value.lineno != value.end_lineno:
                raise LabError(f"the value of {name} stands on several lines, expected one")
            line = lines[value.lineno - 1]
            lines[value.lineno - 1] = line[: value.col_offset] + repr(parameters[name]).encode() + line[value.end_col_offset :]
    return b"\n".join(lines).decode()


def prepare_notebook(step: str, folder: Path, parameters: dict[str, Any]) -> Path:
    """A copy of a notebook of the project in ``folder``, its parameters cell saying what is given; `ParameterError` for a name it lacks."""
    source = ROOT / "notebooks" / f"{step}.ipynb"
    helpers.check_parameters(step, parameters, helpers.notebook_parameters(source))
    notebook = nbformat.read(source, as_version=4)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = with_parameters(cell.source, {k: str(v) if isinstance(v, Path) else v for k, v in parameters.items()})
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / f"{step}.ipynb")
    return folder / f"{step}.ipynb"


# --------------------------------------------------------------------------------------
# The page
# --------------------------------------------------------------------------------------

#: The open notebook as JupyterLab's model has it: one entry a cell, without the images.
STATE = """() => {
  const panel = window.jupyterapp?.shell?.currentWidget;
  const model = panel?.content?.model;
  if (!panel?.context?.isReady || !model?.cells) return null;
  return {
    path: panel.context.path,
    kernel: panel.sessionContext.session?.kernel?.status ?? "none",
    connection: panel.sessionContext.session?.kernel?.connectionStatus ?? "none",
    cells: Array.from(model.cells).map(cell => ({
      type: cell.type,
      tags: cell.getMetadata("tags") ?? [],
      empty: cell.sharedModel.getSource().trim() === "",
      state: cell.executionState ?? "idle",
      count: cell.executionCount ?? null,
      outputs: Array.from({length: cell.outputs?.length ?? 0}, (_, i) => {
        const o = cell.outputs.get(i).toJSON();
        const view = o.data?.["application/vnd.jupyter.widget-view+json"];
        return {type: o.output_type, name: o.name, text: [o.text ?? ""].flat().join(""), ename: o.ename, evalue: o.evalue,
          traceback: (o.traceback ?? []).join("\\n"), kinds: Object.keys(o.data ?? {}), widget: view?.model_id ?? null};
      }),
    })),
  };
}"""

#: Evaluate an expression in the kernel, behind whatever runs there, without a trace in the notebook.
ASK_KERNEL = """async ({code, expression}) => {
  const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  const future = kernel.requestExecute({code, silent: true, store_history: false, stop_on_error: false,
    user_expressions: {value: expression}});
  const reply = (await future.done).content;
  if (reply.status !== "ok") return {error: `${reply.ename}: ${reply.evalue}`};
  const value = reply.user_expressions.value;
  return value.status === "ok" ? {text: value.data["text/plain"]} : {error: `${value.ename}: ${value.evalue}`};
}"""

#: The ipympl canvases that a displayed widget holds, depth first: the order in which they stand in the page.
FIND_CANVASES = """
def _lab_canvases(model_id):
    import ipywidgets
    def walk(widget):
        if type(widget).__name__ == "Canvas" and hasattr(widget, "figure"):
            yield widget
        for child in getattr(widget, "children", ()):
            yield from walk(child)
    return list(walk(ipywidgets.widgets.widget._instances[model_id]))
"""


def plain_text(text: str) -> str:
    """Without the colours of a terminal."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


class Lab:
    """JupyterLab's page. ``console`` holds the errors that it wrote, ``foreign`` the addresses outside the server that it requested."""

    def __init__(self, browser: "Browser", server: LabServer, scale: float = 1):
        self.server = server
        if not browser.contexts:  # all notebooks share one, so that JupyterLab's programs are loaded once
            browser.new_context(viewport=VIEWPORT, device_scale_factor=scale, reduced_motion="reduce")
        self.page: Page = browser.contexts[0].new_page()
        self.page.set_default_timeout(WAIT_S * 1000)
        self.console: list[str] = []
        self.foreign: list[str] = []
        self.page.on("console", lambda message: message.type == "error" and self._heard(f"{message.text} ({message.location['url']})"))
        self.page.on("pageerror", lambda error: self._heard(f"{error.name}: {error.message}"))
        self.page.on("request", lambda request: self._requested(request.url))

    def _heard(self, text: str) -> None:
        if not any(re.search(pattern, text) for pattern in CONSOLE_NOISE):
            self.console.append(text)

    def _requested(self, url: str) -> None:
        if not url.startswith((self.server.url, "data:", "blob:")):
            self.foreign.append(url)

    def wait(self, condition: Callable[[], Any], what: str, timeout: float = WAIT_S) -> Any:
        """As `wait_for`, while the browser goes on."""
        return wait_for(condition, what, timeout, lambda s: self.page.wait_for_timeout(1000 * s))

    def close(self) -> None:
        """End the open notebook's kernel and leave the page."""
        with contextlib.suppress(Exception):
            self.page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
        self.page.close()

    # --- notebook ---

    def open_notebook(self, path: Path) -> None:
        """Open a notebook below the server's root and wait until its kernel is idle."""
        name = path.resolve().relative_to(self.server.root.resolve()).as_posix()
        workspace = secrets.token_hex(4)  # one that remembers nothing
        self.page.goto(f"{self.server.url}lab/workspaces/{workspace}/tree/{name}?token={self.server.token}")

        def ready() -> bool:
            state = self.page.evaluate(STATE)
            return bool(state) and state["path"] == name and state["kernel"] == "idle" and state["connection"] == "connected"

        self.wait(ready, f"{name} and its kernel", 60)
        self.page.locator(".jp-Notebook .jp-Cell").first.wait_for()

    def state(self) -> dict:
        """The notebook's ``path``, ``kernel`` status and ``cells`` (``type``, ``tags``, ``count``, ``outputs`` ...)."""
        return self.page.evaluate(STATE) or {"path": "", "kernel": "none", "cells": []}

    def menu(self, *entries: str) -> None:
        """Choose an entry of the menu, as ``menu("Run", "Run All Cells")``."""
        self.page.locator(".lm-MenuBar-item", has_text=re.compile(f"^{entries[0]}$")).click()
        for entry in entries[1:]:
            self.page.locator(".lm-Menu-item", has=self.page.locator(f".lm-Menu-itemLabel:text-is('{entry}')")).click()

    def run_all(self, timeout: float = 120) -> float:
        """Run > Run All Cells; seconds until every code cell ran and the kernel is idle. `LabError` for the first cell with an error."""
        started = time.monotonic()
        self.menu("Run", "Run All Cells")
        self.wait_all_run(timeout)
        return time.monotonic() - started

    def wait_all_run(self, timeout: float = 120) -> None:
        """Wait until every code cell has its number and the kernel is idle."""

        def finished() -> bool:
            state = self.state()
            for number, cell in enumerate(state["cells"]):
                for output in cell["outputs"]:
                    if output["type"] == "error":
                        trace = plain_text(output["traceback"])[-2000:]
                        raise LabError(f"{state['path']}: cell {number}: {output['ename']}: {output['evalue']}\n{trace}")
            if state["kernel"] in ("dead", "autorestarting"):
                raise LabError(f"{state['path']}: its kernel is {state['kernel']}")
            waiting = [c for c in state["cells"] if c["type"] == "code" and not c["empty"] and (c["count"] is None or c["state"] != "idle")]
            return bool(state["cells"]) and not waiting and state["kernel"] == "idle"

        self.wait(finished, "every cell to run", timeout)

    def wait_idle(self, timeout: float = WAIT_S) -> None:
        """Wait until the kernel has nothing to do in its main thread."""
        self.wait(lambda: self.state()["kernel"] == "idle", "the kernel to be idle", timeout)

    def evaluate(self, expression: str, code: str = "pass") -> Any:
        """A value of the kernel (a Python literal), after ``code`` ran there silently."""
        answer = self.page.evaluate(ASK_KERNEL, {"code": code, "expression": expression})
        if "error" in answer:
            raise LabError(f"{expression}: {answer['error']}")
        return ast.literal_eval(answer["text"])

    def stderr(self) -> list[str]:
        """What cells wrote to the stream of errors, warnings included."""
        return [o["text"] for cell in self.state()["cells"] for o in cell["outputs"] if o["name"] == "stderr"]

    def cell(self, number: int) -> "Cell":
        """A cell by its place, from 0; negative from the end."""
        count = len(self.state()["cells"])
        return Cell(self, number % count)

    def tagged(self, tag: str) -> list["Cell"]:
        """The cells that have a tag."""
        return [Cell(self, n) for n, cell in enumerate(self.state()["cells"]) if tag in cell["tags"]]

    # --- pictures ---

    def screenshot(self, path: Path, target: "Locator | None" = None) -> Path:
        """A picture of the whole notebook, or of one element of it, however high; ``Lab(scale=2)`` gives twice the pixels."""
        target = target or self.page.locator(".jp-Notebook .jp-WindowedPanel-inner, .jp-Notebook").last
        height = target.evaluate("e => Math.max(e.getBoundingClientRect().height, e.scrollHeight)")
        self.page.set_viewport_size({"width": VIEWPORT["width"], "height": int(max(VIEWPORT["height"], height + 300))})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            target.screenshot(path=path, animations="disabled", caret="hide")
        finally:
            self.page.set_viewport_size(VIEWPORT)
        return path


class Cell:
    """One cell of the open notebook, with the controls in its outputs. Controls are found by their description."""

    def __init__(self, lab: Lab, number: int):
        self.lab, self.number = lab, number
        self.locator = lab.page.locator(f".jp-Notebook .jp-Cell[data-windowed-list-index='{number}']")
        self.output = self.locator.locator(".jp-Cell-outputArea")

    @property
    def text(self) -> str:
        """All that its outputs say, as the page shows it."""
        return self.output.inner_text()

    def wait_for_text(self, text: str | re.Pattern, timeout: float = WAIT_S) -> None:
        """Wait until the outputs say a text; `LabError` with what they say instead."""
        found = text.search if isinstance(text, re.Pattern) else lambda shown: text in shown
        try:
            self.lab.wait(lambda: found(self.text), f"{text!r}", timeout)
        except LabError as error:
            raise LabError(f"{error}; cell {self.number} says: {self.text!r}") from None

    def control(self, description: str) -> "Locator":
        """The widget that has this description beside it."""
        label = self.output.locator(".widget-label", has_text=re.compile(f"^\\s*{re.escape(description)}\\s*$"))
        return label.first.locator("xpath=..")

    def slider(self, description: str) -> "Locator":
        """The handle of a slider, which takes the arrow keys."""
        return self.control(description).locator("[role=slider]").first

    def slider_text(self, description: str) -> str:
        """The number beside a slider."""
        return self.control(description).locator(".widget-readout").inner_text().strip()

    def move_slider(self, description: str, steps: int) -> str:
        """Press the right (or, for a negative number, the left) arrow key on a slider; the number that it shows then."""
        before, handle = self.slider_text(description), self.slider(description)
        handle.scroll_into_view_if_needed()
        for _ in range(abs(steps)):
            handle.press("ArrowRight" if steps > 0 else "ArrowLeft")
        self.lab.wait(lambda: self.slider_text(description) != before, f"the slider {description} to leave {before}")
        return self.slider_text(description)

    def choose(self, description: str, option: str) -> None:
        """An option of a dropdown or of a list."""
        self.control(description).locator("select").select_option(label=option)

    def focus(self, description: str) -> "Locator":
        """Give a control the keyboard, as the Tab key does; for ``lab.page.keyboard.press``."""
        part = self.control(description).locator("select, input, button, [role=slider]").first
        part.focus()
        return part

    def button(self, text: str) -> "Locator":
        """A button, or one of toggle buttons."""
        return self.output.locator("button", has_text=re.compile(f"^\\s*{re.escape(text)}\\s*$")).first

    def press_button(self, text: str) -> None:
        """Click a button."""
        self.button(text).click()

    def check(self, description: str) -> None:
        """Turn a checkbox."""
        self.output.locator(".widget-checkbox label", has_text=description).locator("input").click()

    def plot(self, index: int = 0) -> "Plot":
        """An ipympl canvas of the outputs, counted from the top; waits until it is drawn."""
        plot = Plot(self, index)
        plot.wait_drawn()
        return plot

    def screenshot(self, path: Path) -> Path:
        """A picture of the outputs."""
        return self.lab.screenshot(path, self.output)


class Plot:
    """An ipympl canvas: places on it are fractions of its width and height from the top left, or data coordinates of its axes."""

    def __init__(self, cell: Cell, index: int = 0):
        self.cell, self.lab, self.index = cell, cell.lab, index
        self.locator = cell.output.locator(".jupyter-matplotlib-canvas-div").nth(index)
        self.surface = self.locator.locator("canvas").nth(1)  # the one on top, which takes the mouse

    def _canvas(self) -> str:
        """The expression that is this canvas in the kernel."""
        outputs = self.lab.state()["cells"][self.cell.number]["outputs"]
        models = [o["widget"] for o in outputs if o["widget"]]
        return f"[c for m in {models!r} for c in _lab_canvases(m)][{self.index}]"

    def ask(self, expression: str) -> Any:
        """The value of an expression of ``canvas``, as ``len(canvas.figure.axes)``."""
        return self.lab.evaluate(f"(lambda canvas: {expression})({self._canvas()})", FIND_CANVASES)

    def fraction(self, x: float, y: float, axes: int = 0) -> tuple[float, float]:
        """Where data coordinates lie, as fractions from the top left."""
        place = f"canvas.figure.axes[{axes}].transData.transform(({x!r}, {y!r})) / canvas.figure.bbox.size"
        right, up = self.ask(f"[float(v) for v in {place}]")
        return right, 1 - up

    def _pixel(self, place: tuple[float, float]) -> dict[str, float]:
        box = self.surface.bounding_box()
        return {"x": place[0] * box["width"], "y": place[1] * box["height"]}

    def _place(self, x: float, y: float, axes: int | None) -> dict[str, float]:
        return self._pixel((x, y) if axes is None else self.fraction(x, y, axes))

    def click(self, x: float = 0.5, y: float = 0.5, axes: int | None = None, **more: Any) -> None:
        """Click at fractions of the canvas or, where ``axes`` is given, at data coordinates; ``modifiers``, ``button``, ``click_count``."""
        self.surface.click(position=self._place(x, y, axes), **more)

    def hover(self, x: float = 0.5, y: float = 0.5, axes: int | None = None) -> None:
        """Move the mouse there."""
        self.surface.hover(position=self._place(x, y, axes))

    def drag(self, start: tuple[float, float], end: tuple[float, float], axes: int | None = None) -> None:
        """Press the mouse at one place, release it at another."""
        self.surface.scroll_into_view_if_needed()
        box, mouse = self.surface.bounding_box(), self.lab.page.mouse
        a, b = (self._place(*place, axes) for place in (start, end))
        mouse.move(box["x"] + a["x"], box["y"] + a["y"])
        mouse.down()
        mouse.move(box["x"] + b["x"], box["y"] + b["y"], steps=5)
        mouse.up()

    def press(self, key: str) -> None:
        """Press a key in the canvas, which takes the focus, as ``ArrowRight`` or ``Shift+a``."""
        self.locator.press(key)

    def focused(self) -> bool:
        """Whether keys go to this canvas."""
        return self.locator.evaluate("e => e === document.activeElement")

    def picture(self) -> str:
        """The canvas's pixels, to compare: what they are now."""
        return self.locator.locator("canvas").first.evaluate("e => e.toDataURL()")

    def wait_drawn(self, timeout: float = WAIT_S) -> None:
        """Wait until the canvas holds something."""
        blank = "e => !e.width || !e.getContext('2d').getImageData(0, 0, e.width, e.height).data.some(v => v)"
        first = self.locator.locator("canvas").first
        first.wait_for(state="attached")
        self.lab.wait(lambda: not first.evaluate(blank), f"canvas {self.index} of cell {self.cell.number} to be drawn", timeout)

    def wait_redrawn(self, before: str, timeout: float = WAIT_S) -> str:
        """Wait until the pixels are other than they were; the new ones."""
        what = f"canvas {self.index} of cell {self.cell.number} to be drawn anew"
        try:
            self.lab.wait(lambda: self.picture() != before, what, timeout)
        except LabError as error:
            log = self.lab.server.log.read_text(encoding="utf-8", errors="replace")[-3000:]
            raise LabError(f"{error}; the cell says {self.cell.text!r}; the server's log ends with:\n{log}") from None
        return self.picture()

    def screenshot(self, path: Path) -> Path:
        """A picture of the canvas alone."""
        return self.lab.screenshot(path, self.locator)
