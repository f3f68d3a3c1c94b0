"""Trainings as one HTML page. As that of records, it holds all that it shows, and fetches and runs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from . import html, training_table
from .training_log import Training


def render(trainings: Sequence[Training], drawn: Mapping[str, bytes]) -> str:
    """Return the page of these trainings; `drawn` has the SVGs of their charts by name."""
    remarks = training_table.remarks(trainings)
    return html.render(
        "training.html",
        title=training_table.title(trainings),
        part=training_table.parts(trainings)[0],
        kinds={training.name: training.kind for training in trainings},
        warnings=[remark.text for remark in remarks if remark.warning],
        notes=[remark.text for remark in remarks if not remark.warning],
        charts={name: html.drawing(svg) for name, svg in drawn.items()},
    )
