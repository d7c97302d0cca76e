"""TODO."""

from __future__ import annotations

import contextlib
import functools
import html
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import EmphaseError


def in_jupyterlab() -> bool:
    """Whether someone runs this cell in JupyterLab, which names the cell to the kernel; batch runs skip what is made for hands."""
    from IPython import get_ipython

    shell = get_ipython()
    parent: dict[str, Any] = getattr(shell, "get_parent", dict)()
    return shell is not None and "cellId" in parent.get("metadata", {})


class _CancelledError(Exception):
    """The user wants no more of a computation."""


class _Work:
    """One long computation at a time beside the widgets: a bar, a button that cancels it, and a message where it fails.

    What is started later takes the place of what runs: that goes on to its next step, and its result is dropped. ``lock`` is the
    explorer's: what a computation ends with and what a user does never happen at once.
    """

    def __init__(self, say: Callable[[str], None], lock: Any):
        import ipywidgets

        self.say, self.lock = say, lock
        self.bar = ipywidgets.FloatProgress(min=0, max=1, description="", layout={"width": "16em"})
        self.cancel_button = ipywidgets.Button(description="Cancel", tooltip="Stop this computation", layout={"width": "6em"})
        self.cancel_button.on_click(lambda _: self.cancel())
        self.box = ipywidgets.HBox([self.bar, self.cancel_button], layout={"visibility": "hidden"})
        self._current = 0
        self._back: Callable[[], None] = lambda: None
        self.thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        return self.box.layout.visibility == "visible"

    def cancel(self) -> None:
        """Drop what runs, and go back to what was before."""
        with self.lock:
            if self.running:
                self._end()
                self._back()
                self.say("Cancelled; nothing has changed.")

    def drop(self) -> None:
        """Drop what runs without a word: something else takes its place."""
        with self.lock:
            if self.running:
                self._end()

    def _end(self) -> None:
        self._current += 1
        self.box.layout.visibility = "hidden"

    def start(self, label: str, compute: Callable[[Callable], Any], done: Callable[[Any], None], back: Callable[[], None]) -> None:
        """Run ``compute(progress)`` beside, ``progress`` wrapping what it loops over, then ``done(result)``; ``back()`` where not."""
        if not self.running:
            self._back = back
        self._current += 1
        number = self._current
        self.bar.description, self.bar.value = label, 0.0
        self.box.layout.visibility = "visible"

        def progress(items: Any, total: int | None = None) -> Iterator:
            items = list(items) if total is None else items
            for k, item in enumerate(items):
                self._go_on(number, k / max(total or len(items), 1))
                yield item
            self._go_on(number, 1.0)

        def work() -> None:
            fault, result = "", None
            try:
                result = compute(progress)
            except _CancelledError:
                return
            except EmphaseError as error:
                fault = f"{type(error).__name__}: {error}"
            except Exception as error:  # nobody sees the traceback of a thread: say it, and go back
                fault = f"This failed: {type(error).__name__}: {error}"
            with self.lock:
                if number != self._current:
                    return
                self._end()
                if fault:
                    self._back()
                    self.say(fault)
                else:
                    done(result)

        self.thread = threading.Thread(target=work, daemon=True)
        self.thread.start()

    def _go_on(self, number: int, share: float) -> None:
        self.bar.value = share
        time.sleep(0.02)  # compiled code holds the interpreter: only here can the button for cancelling be heard
        if number != self._current:
            raise _CancelledError


#: JupyterLab takes arrows and letters for commands of its own before a control that has the focus sees them, unless that very element
#: says otherwise; sliders have no name that a screen reader could tell.
_CONTROLS_KEEP_KEYS = """window.explorersKeepKeys ||= (document.addEventListener("focusin", event => {
  const control = event.target.closest(".explorer .jupyter-widgets");
  if (!control) return;
  event.target.setAttribute("data-lm-suppress-shortcuts", "");
  const label = control.querySelector(".widget-label");
  if (label && !event.target.id) event.target.setAttribute("aria-label", label.textContent);
}, true), true);"""


@dataclass(frozen=True)
class HandChoices:
    """Whose recording an explorer shows, and what becomes of a choice made in it.

    ``title`` stands over the figure. ``keep(parameters, reason)`` and ``forget()`` do what their buttons say and return a sentence for
    the user; without them an explorer has no such buttons. ``kept`` tells what had been chosen before.
    """

    title: str = ""
    keep: Callable[[dict[str, Any], str], str] | None = None
    forget: Callable[[], str] | None = None
    kept: str = ""


class _Explorer:
    """A figure that answers mouse and keys, controls under it, a line that says what is shown, and a box to keep what was chosen.

    ``widget`` is all of it. Clicks, moves and keys reach ``on_click``, ``on_move``, ``on_key``; what a user keeps, by the callbacks of
    ``hand``, are the parameters of ``choice()``.
    """

    def __init__(self, size_in: tuple[float, float], axes: Any, help_text: str, hand: HandChoices | None):
        import ipywidgets
        from ipympl.backend_nbagg import Canvas, FigureManager
        from matplotlib.figure import Figure

        self.hand = hand or HandChoices()
        self.figure = Figure(figsize=size_in, dpi=80, layout="constrained")
        self.canvas = Canvas(self.figure)
        self.manager = FigureManager(self.canvas, 0)
        for part in ("toolbar_visible", "header_visible", "footer_visible", "resizable"):
            setattr(self.canvas, part, False)
        self.canvas.add_class("explorer-canvas")
        self.axes = self.figure.subplot_mosaic(**axes)
        self.lock = threading.RLock()
        self._silent: list[Any] = []
        self._render, self.canvas.draw = self.canvas.draw, self._draw_alone
        self.status = ipywidgets.HTML()
        self.status.add_class("explorer-status")
        self.message = ipywidgets.HTML()
        self.message.add_class("explorer-message")
        self.work = _Work(self.say, self.lock)
        self.help = ipywidgets.HTML(f"<small>{help_text} Tab leaves the figure.</small>")
        for event, handler in (("button_press_event", "on_click"), ("motion_notify_event", "on_move"), ("key_press_event", "on_key"),
                               ("button_release_event", "on_release")):  # fmt: skip
            self.canvas.mpl_connect(event, functools.partial(self._handle, handler))
        if self.hand.title:
            self.figure.suptitle(self.hand.title, fontsize=10)

    def guarded(self, act: Callable[[], None]) -> None:
        """Do what the user asks for, and say it where that cannot be done."""
        with self.lock:
            try:
                act()
            except (EmphaseError, OSError) as error:
                self.say(f"{type(error).__name__}: {error}")

    def _draw_alone(self) -> None:
        """Draw while no computation that ends beside changes the figure; a drawing that fails would be the canvas's last."""
        with self.lock:
            self._render()

    def _handle(self, name: str, event: Any) -> None:
        if name == "on_key" and event.key in ("tab", "escape"):  # the canvas takes every key: without this it would not let go of the focus
            self.first.focus()
            return
        self.guarded(lambda: getattr(self, name)(event))

    def on_click(self, event: Any) -> None:
        """A mouse button goes down."""

    def on_move(self, event: Any) -> None:
        """The mouse moves."""

    def on_release(self, event: Any) -> None:
        """A mouse button goes up."""

    def on_key(self, event: Any) -> None:
        """A key goes down while the figure has the focus."""

    def choice(self) -> dict[str, Any]:
        """The parameters that a user would keep."""
        return {}

    def say(self, text: str) -> None:
        """Show a sentence under the controls."""
        self.message.value = html.escape(text)

    def observe(self, control: Any, change: Callable[[], None]) -> None:
        """Call ``change`` whenever the value of a control does, unless it is set `silently`."""

        def handler(_: Any) -> None:
            if control not in self._silent:
                self.guarded(change)

        control.observe(handler, "value")

    @contextlib.contextmanager
    def silently(self, control: Any) -> Iterator[None]:
        """Set a control to what holds without acting on it."""
        self._silent.append(control)
        yield
        self._silent.remove(control)

    def button(self, label: str, act: Callable[[], None], tooltip: str = "") -> Any:
        """A button that calls ``act``."""
        import ipywidgets

        button = ipywidgets.Button(description=label, tooltip=tooltip or label, layout={"width": "auto"})

        button.on_click(lambda _: self.guarded(act))
        return button

    def keeping(self) -> Any:
        """The box in which a user keeps a choice with its reason, or forgets it."""
        import ipywidgets

        self.reason = ipywidgets.Text(placeholder="reason, kept with the choice", description="Why", layout={"width": "30em"})
        self.say(self.hand.kept)
        buttons = []
        if self.hand.keep:
            buttons.append(self.button("Keep for batch runs", self.keep, "Write this choice down; runs use it and say so"))
        if self.hand.forget:
            buttons.append(self.button("Forget", self.forget, "Take back what was written down"))
        return ipywidgets.HBox([self.reason, *buttons] if buttons else [])

    def keep(self) -> None:
        """Keep the choice with its reason."""
        if len(self.reason.value.strip()) < 3:
            self.say("Not kept: say why first, in a few words. A choice without a reason is of no use to the next reader.")
            return
        assert self.hand.keep is not None, "there is a button for it only where it can be kept"
        self.say(self.hand.keep(self.choice(), self.reason.value.strip()))

    def forget(self) -> None:
        """Take back what was kept."""
        assert self.hand.forget is not None, "there is a button for it only where it can be forgotten"
        self.say(self.hand.forget())

    def arrange(self, *rows: Any) -> None:
        """Put the widget together and draw for the first time; the axes then stay where they are."""
        import ipywidgets

        self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")
        self.first = rows[0].children[0]
        self.widget = ipywidgets.VBox([self.canvas, self.status, *rows, self.work.box, self.message, self.help])
        self.widget.add_class("explorer")

    def draw(self) -> None:
        self.canvas.draw_idle()

    def _ipython_display_(self) -> None:
        from IPython.display import Javascript, display

        display(Javascript(_CONTROLS_KEEP_KEYS), self.widget)


def _table_html(head: Iterable[str], rows: Iterable[Iterable[Any]], caption: str = "") -> str:
    """A small table; all texts are escaped."""
    cell = lambda value, tag: f'<{tag} style="padding:0 .8em 0 0;text-align:left">{html.escape(str(value))}</{tag}>'
    row = lambda values, tag: f"<tr>{''.join(cell(value, tag) for value in values)}</tr>"
    told = f"<caption style='text-align:left'>{html.escape(caption)}</caption>" if caption else ""
    return f"<table>{told}<thead>{row(head, 'th')}</thead><tbody>{''.join(row(r, 'td') for r in rows)}</tbody></table>"
