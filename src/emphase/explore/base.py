"""What all explorers share: a figure that answers mouse and keys, its controls, and a box that keeps a choice made by hand.

An explorer is a view of results of the library in JupyterLab. It computes nothing: where a choice needs another computation, it
calls the function that made the result, in a thread (`BackgroundWork`). It opens no pyplot figure, so that a notebook's figures and an
explorer do not share state: the ipympl canvas is made directly. What becomes of a choice is up to the caller (`HandChoices`).
"""

from __future__ import annotations

import contextlib
import functools
import html
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from ..choices import HandChoices
from ..errors import EmphaseError
from .work import BackgroundWork

#: JupyterLab handles arrows and letters as its commands before a control that has the focus, unless that very element carries an
#: attribute; sliders have no name for a screen reader.
CONTROLS_KEEP_KEYS = """window.explorersKeepKeys ||= (document.addEventListener("focusin", event => {
  const control = event.target.closest(".explorer .jupyter-widgets");
  if (!control) return;
  event.target.setAttribute("data-lm-suppress-shortcuts", "");
  const label = control.querySelector(".widget-label");
  if (label && !event.target.id) event.target.setAttribute("aria-label", label.textContent);
}, true), true);"""

_EVENTS = {
    "button_press_event": "on_click",
    "motion_notify_event": "on_move",
    "key_press_event": "on_key",
    "button_release_event": "on_release",
}


class Explorer:
    """A figure that answers mouse and keys, controls below it, a line that describes what is shown, and a box to keep a choice.

    Subclasses override ``on_click``, ``on_move``, ``on_release`` and ``on_key``, which take matplotlib events, and ``choice``.

    Parameters
    ----------
    size_in : tuple of float
        Width and height of the figure in inches, at 80 pixels an inch.
    axes : dict
        Arguments of `matplotlib.figure.Figure.subplot_mosaic`.
    help_text : str
        How to use the figure.
    hand : HandChoices, optional
        Title, and what becomes of a choice.

    Attributes
    ----------
    widget : ipywidgets.VBox
        All of it, after `arrange`.
    """

    def __init__(self, size_in: tuple[float, float], axes: dict[str, Any], help_text: str, hand: HandChoices | None):
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
        self._render, self.canvas.draw = self.canvas.draw, self._draw_locked
        self.status = ipywidgets.HTML()
        self.status.add_class("explorer-status")
        self.message = ipywidgets.HTML()
        self.message.add_class("explorer-message")
        self.work = BackgroundWork(self.say, self.lock)
        self.help = ipywidgets.HTML(f"<small>{help_text} Tab leaves the figure.</small>")
        for event, handler in _EVENTS.items():
            self.canvas.mpl_connect(event, functools.partial(self._handle, handler))
        if self.hand.title:
            self.figure.suptitle(self.hand.title, fontsize=10)

    def guarded(self, act: Callable[[], None]) -> None:
        """Do what the user asks for with the lock held, and show the error where that fails."""
        with self.lock:
            try:
                act()
            except (EmphaseError, OSError) as error:
                self.say(f"{type(error).__name__}: {error}")

    def _draw_locked(self) -> None:
        """Draw while no computation that ends changes the figure: ipympl draws no more after a drawing that failed."""
        with self.lock:
            self._render()

    def _handle(self, name: str, event: Any) -> None:
        """Pass an event of the canvas on; Tab and Escape give the focus to the first control."""
        if name == "on_key" and event.key in ("tab", "escape"):  # the canvas swallows every key: without this it would keep the focus
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
        """The parameters that `keep` stores."""
        return {}

    def say(self, text: str) -> None:
        """Show a sentence under the controls."""
        self.message.value = html.escape(text)

    def observe(self, control: Any, change: Callable[[], None]) -> None:
        """Call ``change`` whenever the value of a control changes, unless it is set `silently`."""

        def handler(_: Any) -> None:
            if control not in self._silent:
                self.guarded(change)

        control.observe(handler, "value")

    @contextlib.contextmanager
    def silently(self, control: Any) -> Iterator[None]:
        """Set a control to the present state without acting on it."""
        self._silent.append(control)
        yield
        self._silent.remove(control)

    def button(self, label: str, act: Callable[[], None], tooltip: str = "") -> Any:
        """A button that calls ``act``."""
        import ipywidgets

        button = ipywidgets.Button(description=label, tooltip=tooltip or label, layout={"width": "auto"})

        button.on_click(lambda _: self.guarded(act))
        return button

    def hand_box(self) -> Any:
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
        """Delete what was kept."""
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
        """Draw the figure once the kernel is idle."""
        self.canvas.draw_idle()

    def _ipython_display_(self) -> None:
        """Show the widget as the output of a cell."""
        from IPython.display import Javascript, display

        display(Javascript(CONTROLS_KEEP_KEYS), self.widget)


def show_image(ax: Any, image: np.ndarray, percentiles: tuple[float, float] = (1, 99.7), title: str = "") -> None:
    """Show an image in grey on cleared axes without ticks.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    image : ndarray (y, x)
    percentiles : tuple of float
        Those that are black and white.
    title : str
    """
    low, high = np.percentile(image, percentiles)
    ax.clear()
    ax.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-9))
    ax.set(xticks=[], yticks=[])
    ax.set_title(title, fontsize=9)


def table_html(head: Iterable[str], rows: Iterable[Iterable[Any]], caption: str = "") -> str:
    """A small table as HTML; all texts are escaped.

    Parameters
    ----------
    head : iterable of str
    rows : iterable of iterables
        Cells, written by ``str``.
    caption : str

    Returns
    -------
    str
    """
    cell = lambda value, tag: f'<{tag} style="padding:0 .8em 0 0;text-align:left">{html.escape(str(value))}</{tag}>'
    row = lambda values, tag: f"<tr>{''.join(cell(value, tag) for value in values)}</tr>"
    above = f"<caption style='text-align:left'>{html.escape(caption)}</caption>" if caption else ""
    return f"<table>{above}<thead>{row(head, 'th')}</thead><tbody>{''.join(row(r, 'td') for r in rows)}</tbody></table>"
