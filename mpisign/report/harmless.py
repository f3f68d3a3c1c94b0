"""Text out of files, made harmless where it is shown: a record may come from anybody.

At the door `printable` takes what a terminal would obey out of every string. What is markup in one form of output
alone is disarmed where that form is written; in pages, all text is escaped by the template (`html.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_MARKDOWN = str.maketrans({"\\": r"\\", "|": r"\|", "`": r"\`", "<": "&lt;", ">": "&gt;"})
_LINK = re.compile(r"\](?=[(\[:])")
_FORMULA = re.compile(r"[=+\-@]")  # begins one, in what spreadsheets make of a cell of text


def printable(text: str) -> str:
    """Return a text in one line, with escape sequences for what does not print: control characters and the like."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def all_printable(value: Any) -> Any:
    """Return what was read from JSON with each string in it made `printable`, names of fields too."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, (list, tuple)):
        return [all_printable(each) for each in value]
    if isinstance(value, dict):
        return {printable(name): all_printable(each) for name, each in value.items()}
    return value


def markdown(text: str) -> str:
    """Return a text for Markdown, in which it neither ends a cell nor makes a link, code or HTML."""
    return _LINK.sub(r"]\\", text.translate(_MARKDOWN))


def cells(row: Iterable[Any]) -> list[Any]:
    """Return the cells of a row for a CSV file: text that a spreadsheet would take for a formula begins with a '."""
    return [f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell for cell in row]
