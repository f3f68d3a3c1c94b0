"""What the files here share: measure and keep, or show what was kept."""

import argparse
import json
from pathlib import Path

from mpisign import records


def keep_and_show(name, description, measure, show, draw=None):
    """Call `measure`, keep its lines behind the machine's, and `show` them; or only show those of a file.

    `measure` yields dicts, or nothing at all on ranks other than 0. `show` takes them and a style of tabulate's.
    `draw`, if given, makes a matplotlib Figure of the lines.
    """
    arguments = argparse.ArgumentParser(prog=name, description=description.splitlines()[0])
    arguments.add_argument("--output", type=Path, metavar="FILE", help="keep the samples as JSON lines")
    arguments.add_argument("--show", type=Path, metavar="FILE", help="measure nothing, show a kept file as markdown")
    if draw:
        arguments.add_argument("--figure", type=Path, metavar="FILE.svg", help="draw the figure, and a PNG next to it")
    options = arguments.parse_args()
    if options.show:
        machine, *lines = map(json.loads, options.show.read_text().splitlines())
        show(lines, "pipe")
        about = f"\n{machine['cpu']}, {machine['cores']} cores; numba {machine['numba']}, torch {machine['torch']}"
        print(f"{about}, mpisign commit {machine['commit']}")
        if draw and options.figure:
            write_figure(draw(lines), options.figure)
        return
    lines = list(measure())
    if lines:
        show(lines, "simple")
        if options.output:
            records.write(options.output, map(json.dumps, [{"type": "machine", **records.machine()}, *lines]))
        if draw and options.figure:
            write_figure(draw(lines), options.figure)


def write_figure(figure, path):
    """Write a figure as SVG, the same bytes each time, and as PNG next to it."""
    import matplotlib

    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "mpisign"}):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(path.with_suffix(".png"), dpi=150)
