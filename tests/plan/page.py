"""Sections of a page in Markdown that a measurement replaces."""

import textwrap
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path


def section(heading: str, facts: str, about: str, lines: Sequence[str]) -> str:
    """A section with how it was measured, after the date, what it shows, and its table."""
    dated = f"{datetime.now(timezone.utc):%Y-%m-%d}, {facts}"
    paragraph = textwrap.fill(f"{dated} {about}", 120, break_on_hyphens=False, break_long_words=False)
    return "\n".join([heading, "", paragraph, "", *lines, ""])


def write_section(path: Path, heading: str, text: str) -> None:
    """Replace the section of a page, or append it."""
    page = path.read_text() if path.exists() else ""
    before, _, after = page.partition(f"{heading}\n")
    following = after.find("\n## ")
    rest = after[following + 1 :] if following >= 0 else ""
    path.write_text(f"{before.rstrip()}\n\n{text}{rest and chr(10)}{rest}".lstrip())
