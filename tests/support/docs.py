"""The documentation's fenced blocks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    page
    for folder in (ROOT, ROOT / "docs", ROOT / "docs" / "adr", ROOT / "examples")
    for page in folder.glob("*.md")
)


class Fence(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """Page and line, for messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def fences(language: str) -> list[Fence]:
    """All blocks in one language, page by page."""
    return [
        Fence(page, text[: match.start()].count("\n") + 1, match[1], match[2])
        for page in PAGES
        for text in [page.read_text()]
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        if match[1] == language
    ]


def example(page: str, path: str) -> str:
    """The one python block of a page whose first line names this file.

    Raises:
        ValueError: there is none, or more than one.
    """
    found = fences("python")
    (text,) = (f.text for f in found if f.page == ROOT / page and f.text.startswith(f"# {path}\n"))
    return text
