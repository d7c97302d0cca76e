"""TODO."""

from __future__ import annotations

import base64
import hashlib

from helpers import PROJECT_ROOT

_PAGE_TEMPLATES = PROJECT_ROOT / "notebooks" / "templates"


def _page_style() -> str:
    """The style sheet of all pages, with the colours of highlighted code for light and dark."""
    from pygments.formatters import HtmlFormatter

    own = (_PAGE_TEMPLATES / "page" / "style.css").read_text(encoding="utf-8")
    colours = {style: HtmlFormatter(style=style, nobackground=True).get_style_defs(".highlight") for style in ("xcode", "github-dark")}
    return f"{own}\n{colours['xcode']}\n@media screen and (prefers-color-scheme: dark) {{\n{colours['github-dark']}\n}}"


def _page_scripts(*more: str) -> list[str]:
    """The scripts of a page: the one of all pages, and its own."""
    return [(_PAGE_TEMPLATES / "page" / name).read_text(encoding="utf-8") for name in ("page.js", *more)]


def _content_policy(scripts: list[str]) -> str:
    """The content security policy of a page: nothing is loaded from anywhere, and only these scripts run."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}; base-uri 'none'; form-action 'none'"
