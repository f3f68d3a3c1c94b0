"""Trainings as one HTML page. As that of records, it holds all that it shows, and fetches and runs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from . import training_table
from .training_log import Training


def render(trainings: Sequence[Training], drawn: Mapping[str, bytes]) -> str:
    """Return the page of these trainings; `drawn` has the SVGs of their charts by name."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("training.html").read_text())
    remarks = training_table.remarks(trainings)
    return template.render(
        title=training_table.title(trainings),
        part=training_table.parts(trainings)[0],
        kinds={training.name: training.kind for training in trainings},
        warnings=[remark.text for remark in remarks if remark.warning],
        notes=[remark.text for remark in remarks if not remark.warning],
        charts={name: Markup(_inline(svg)) for name, svg in drawn.items()},  # noqa: S704
    )


def _inline(svg: bytes) -> str:
    """Return a drawing without what only a file of its own has: the lines before its element."""
    text = svg.decode()
    return text[text.index("<svg") :]
