"""Measure and write the samples to a file, or show and draw those of a file: what the benchmarks share."""

import argparse
import importlib.util
import json
from pathlib import Path

from mpisign.ranks.machine import machine as machine_facts
from mpisign.report import charts, records


def keep_and_show(name, description, measure, show, draw=None):
    """Call `measure`, write its lines after one of the machine, and `show` them; or only show those of a file.

    `measure` yields dicts, or nothing at all on ranks other than 0. `show` takes them and a style of tabulate's.
    `draw`, if there is one, takes them and returns a figure of matplotlib's.
    """
    arguments = argparse.ArgumentParser(prog=name, description=description.splitlines()[0])
    arguments.add_argument("--output", type=Path, metavar="FILE", help="keep the samples as JSON lines")
    arguments.add_argument("--show", type=Path, metavar="FILE", help="measure nothing, show a kept file as markdown")
    if draw:
        arguments.add_argument("--figure", type=Path, metavar="FILE.svg", help="draw a figure, and FILE.png beside it")
    options = arguments.parse_args()
    figure = options.figure if draw else None
    if figure and figure.suffix != ".svg":
        arguments.error(f"--figure: {figure} does not end in .svg")
    if figure and not importlib.util.find_spec("matplotlib"):
        arguments.error("--figure: needs matplotlib: pip install 'mpisign[plots]'")
    for path in filter(None, (options.output, figure)):
        if refused := records.unwritable(path):
            arguments.error(refused)
    if options.show:
        machine, *lines = map(json.loads, options.show.read_text().splitlines())
        show(lines, "pipe")
        cores = f"{machine['cores']} core{'s' * (machine['cores'] > 1)}"
        about = f"\n{machine['cpu']}, {cores}; numba {machine['numba']}, torch {machine['torch']}"
        dirty = " (with changes that are in no commit)" if (machine["commit"] or "").endswith("-dirty") else ""
        print(f"{about}, mpisign commit {machine['commit']}{dirty}")
    else:
        # As they will be read again: a figure is the same to the byte, now and later.
        lines = json.loads(json.dumps(list(measure())))
        if lines and options.output:
            records.write(options.output, map(json.dumps, [{"type": "machine", **machine_facts()}, *lines]))
        if lines:
            show(lines, "simple")
    if lines and figure:
        charts.write(figure.with_suffix(""), lambda: draw(lines))
