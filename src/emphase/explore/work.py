"""One long computation at a time beside the widgets of an explorer: a thread, a progress bar and a button that cancels it.

Compiled kernels cannot be interrupted, so a computation is cancelled where it steps: it wraps what it loops over in ``progress``, which
moves the bar and raises in the thread once the computation is cancelled or superseded. Until then it runs on unseen; its result is dropped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import EmphaseError

#: Pause at each step, in s: compiled code holds the interpreter, and only here can a click on the button be handled.
STEP_PAUSE_S = 0.02


class _CancelledError(Exception):
    """The computation is cancelled or superseded."""


class BackgroundWork:
    """A computation in a thread, with a progress bar and a button that cancels it; a computation started later supersedes it.

    Parameters
    ----------
    say : callable
        Shows a sentence to the user.
    lock : threading.RLock
        The explorer's lock: the end of a computation and an action of the user never overlap.

    Attributes
    ----------
    box : ipywidgets.HBox
        The bar and the button, visible while something runs.
    thread : threading.Thread or None
        The thread of the latest computation.
    """

    def __init__(self, say: Callable[[str], None], lock: Any):
        import ipywidgets

        self.say, self.lock = say, lock
        self.bar = ipywidgets.FloatProgress(min=0, max=1, description="", layout={"width": "16em"})
        self.cancel_button = ipywidgets.Button(description="Cancel", tooltip="Stop this computation", layout={"width": "6em"})
        self.cancel_button.on_click(lambda _: self.cancel())
        self.box = ipywidgets.HBox([self.bar, self.cancel_button], layout={"visibility": "hidden"})
        self._current = 0
        self._restore: Callable[[], None] = lambda: None
        self.thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        """Whether a computation runs whose result is awaited."""
        return self.box.layout.visibility == "visible"

    def cancel(self) -> None:
        """Drop the running computation, restore the state before it, and say so."""
        with self.lock:
            if self.running:
                self._end()
                self._restore()
                self.say("Cancelled; nothing has changed.")

    def drop(self) -> None:
        """Drop the running computation without a message: something else supersedes it."""
        with self.lock:
            if self.running:
                self._end()

    def _end(self) -> None:
        """Hide the bar, and let the thread know that its result is not awaited."""
        self._current += 1
        self.box.layout.visibility = "hidden"

    def start(self, label: str, compute: Callable[[Callable], Any], done: Callable[[Any], None], restore: Callable[[], None]) -> None:
        """Run a computation in a thread.

        Parameters
        ----------
        label : str
            Description beside the bar.
        compute : callable
            ``compute(progress)`` gives the result; it loops over ``progress(items, total)``, as over ``items``.
        done : callable
            ``done(result)`` is called with the lock held once the result is there.
        restore : callable
            Called where the computation fails or is cancelled. Of computations that supersede each other, the first one's is kept.
        """
        if not self.running:
            self._restore = restore
        self._current += 1
        self.bar.description, self.bar.value = label, 0.0
        self.box.layout.visibility = "visible"
        self.thread = threading.Thread(target=self._run, args=(self._current, compute, done), daemon=True)
        self.thread.start()

    def _run(self, number: int, compute: Callable[[Callable], Any], done: Callable[[Any], None]) -> None:
        """The body of the thread: compute, then hand over the result, or the fault."""
        fault, result = "", None
        try:
            result = compute(lambda items, total=None: self._steps(number, items, total))
        except _CancelledError:
            return
        except EmphaseError as error:
            fault = f"{type(error).__name__}: {error}"
        except Exception as error:  # the traceback of a thread is shown nowhere
            fault = f"This failed: {type(error).__name__}: {error}"
        with self.lock:
            if number != self._current:
                return
            self._end()
            if fault:
                self._restore()
                self.say(fault)
            else:
                done(result)

    def _steps(self, number: int, items: Any, total: int | None) -> Iterator:
        """The items, with the bar moved before each of them."""
        items = list(items) if total is None else items
        for k, item in enumerate(items):
            self._step(number, k / max(total or len(items), 1))
            yield item
        self._step(number, 1.0)

    def _step(self, number: int, fraction: float) -> None:
        """Move the bar, and end the thread where its result is not awaited."""
        self.bar.value = fraction
        time.sleep(STEP_PAUSE_S)
        if number != self._current:
            raise _CancelledError
