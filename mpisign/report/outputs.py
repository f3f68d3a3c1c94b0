"""What `mpisign.report` writes beside the tables, of records and of trainings alike: charts as files, and a page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from . import records


def form(options: argparse.Namespace) -> str | None:
    """Return in what format tables are printed; None if files alone are asked for."""
    files_alone = (options.figures or options.html) and not (options.wide or options.per_iteration)
    return options.format or (None if files_alone else "table")


def suffixes(options: argparse.Namespace) -> tuple[str, ...]:
    """Return in what forms the charts are drawn: a page takes SVG alone."""
    return (".svg", ".png") if options.figures else (".svg",)


def refuse(options: argparse.Namespace, what: str) -> None:
    """Raise a ValueError if charts or the page can't be written; `what` is what the files are that are read."""
    if options.html in options.files:
        raise ValueError(f"--html: {options.html} is one of the {what}")
    for option, path in (("--figures", options.figures and options.figures / "x"), ("--html", options.html)):
        fault = path and records.unwritable(path)
        if fault:
            raise ValueError(f"{option}: {fault}")


def write_charts(folder: Path, pictures: Mapping[str, Mapping[str, bytes]]) -> None:
    """Write charts to a folder, given by name and then by suffix; say which."""
    for name, drawn in pictures.items():
        for suffix, picture in drawn.items():
            write(folder / f"{name}{suffix}", picture)


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and say so."""
    records.write_bytes(path, content)
    print(f"mpisign.report: wrote {path}", file=sys.stderr)
