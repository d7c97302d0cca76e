"""The one exception of this library, and how texts are kept short in its messages.

Whatever a method cannot use is reported as an `EmphaseError`, whose text names what came and what was expected. A program that knows more
about the input, such as the file and the key that it came from, catches it and puts these in front.
"""

from __future__ import annotations


class EmphaseError(ValueError):
    """Input that a method cannot use: the text names what came and what was expected, and is all that a user needs to see."""

    def _render_traceback_(self) -> list[str]:
        """The lines that IPython shows in place of a traceback."""
        return [f"{type(self).__name__}: {self}"]


def one_line(error: object) -> str:
    """The text of an error as one line of at most 300 characters.

    >>> one_line(ValueError("first\\n  second"))
    'first second'
    """
    return " ".join(str(error).split())[:300]


def shortened(text: str, most: int = 200) -> str:
    """A text of at most ``most`` characters, the last one "…" where some were left off.

    >>> shortened("a long text", 7)
    'a long…'
    """
    return text if len(text) <= most else f"{text[: most - 1]}…"
