"""What goes wrong by what was given, said so that a reader can mend it."""

from __future__ import annotations


class EmphaseError(ValueError):
    """Input that a method cannot use: the text names what came and what was expected, and is all that a user needs to see."""

    def _render_traceback_(self) -> list[str]:
        """IPython shows these lines in place of a traceback."""
        return [f"{type(self).__name__}: {self}"]


def one_line(error: object) -> str:
    """What an error says, in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


def shortened(text: str, most: int = 200) -> str:
    """A text of at most ``most`` characters, the last one "…" where some were left off.

    >>> shortened("a long text", 7)
    'a long…'
    """
    return text if len(text) <= most else f"{text[: most - 1]}…"
