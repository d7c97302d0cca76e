"""Style and scripts of the pages, and the policy that lets these alone run.

They lie with the templates in `pages/templates`, which nbconvert and Jinja fill. Everything is put into each page, so that one file is
enough; the policy names every script by its SHA-256 (Content Security Policy Level 3, https://www.w3.org/TR/CSP3).
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

TEMPLATES = Path(__file__).resolve().parent / "templates"


def _page_style() -> str:
    """The style sheet of all pages, with the colours of highlighted code for light and dark."""
    from pygments.formatters import HtmlFormatter

    sheet = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    colours = {style: HtmlFormatter(style=style, nobackground=True).get_style_defs(".highlight") for style in ("xcode", "github-dark")}
    return f"{sheet}\n{colours['xcode']}\n@media screen and (prefers-color-scheme: dark) {{\n{colours['github-dark']}\n}}"


def _page_scripts(*more: str) -> list[str]:
    """The scripts of a page: the one that all pages have, and ``more``."""
    return [(TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.js", *more)]


def _content_policy(scripts: list[str]) -> str:
    """The content security policy of a page: nothing is loaded from anywhere, and only these scripts run."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}; base-uri 'none'; form-action 'none'"
