"""Draw what README, docs and the list of records show, from the newest records in results/published/.

    python docs/draw.py            draw the charts, then write tables and numbers into PAGES
    python docs/draw.py --check    write nothing; the exit code is not 0 if a page is out of date

cog runs the blocks in the pages, which call the functions below. A run of one's own goes to another folder of results/,
and is shown nowhere.
"""

import contextlib
import functools
import io
import re
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PUBLISHED = ROOT / "results" / "published"
PAGES = ["README.md", "results/README.md",
         *sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/*.md"))]  # fmt: skip
CHARTED = ("resnet50-8-ranks",)
CHARTS = {"breakdown": "Where an iteration's time goes, method by method",
          "distribution": "Every sample of each method, with medians and intervals"}  # fmt: skip


def newest(name: str) -> Path:
    """Return the newest record of that name, relative to the root; its file name begins with its date."""
    found = sorted(PUBLISHED.glob(f"*/*-{name}.jsonl"), key=lambda path: path.name)
    if not found:
        raise SystemExit(f"no record of {name} in results/published/")
    return found[-1].relative_to(ROOT)


@functools.cache
def output(*command: str) -> str:
    """Return what `python -m MODULE ARGUMENT...` prints. In this process, for to import torch anew takes seconds."""
    _, module, *arguments = command
    printed, before = io.StringIO(), sys.argv
    sys.argv, sys.path[:0] = [module, *arguments], [str(ROOT)]
    try:
        with contextlib.redirect_stdout(printed):
            runpy.run_module(module, run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise SystemExit(f"python {' '.join(command)}: exit code {end.code}") from None
    finally:
        sys.argv = before
        sys.path.remove(str(ROOT))
    return printed.getvalue().rstrip()


def link(path: Path) -> str:
    """Return the link from the page that cog is at work on to a path under the root."""
    import cog

    return "../" * (len(Path(cog.inFile).parts) - 1) + str(path)


def show(name: str, *command: str) -> None:
    """Print what `command` makes of the newest record of that name, and a link to the record."""
    record = newest(name)
    print(f"\nFrom [`{record}`]({link(record)}):\n\n{output(*command, str(record))}\n")


def report(name: str) -> None:
    """Print the tables of a run of the bench."""
    show(name, "-m", "mpisign.report", "--format", "markdown")


def summary(name: str) -> None:
    """Print the table of the methods of a serial run, the answer's line, the warnings, and what is old."""
    record = newest(name)
    whole = output("-m", "mpisign.report", "--format", "markdown", str(record)).splitlines()
    rows = [re.sub(" +", " ", re.sub("--+", "--", row)) for row in whole[2 : whole.index("", 2)]]
    print(f"\nFrom [`{record.name}`]({link(record)}): {whole[0]}\n\n" + "\n".join(rows) + "\n")
    print(next(line for line in whole if line.startswith("Does it pay here?")) + "\n")
    told = [line.removeprefix("- ") for line in whole if "WARNING" in line or "an old record" in line]
    print("**" + "; ".join(told) + "**\n")


def chart(name: str, which: str) -> None:
    """Print one of CHARTS of a run of the bench, which `draw` left beside its record."""
    record = newest(name)
    figure = record.with_name(f"{record.stem}-{which}.svg")
    if not (ROOT / figure).exists():
        raise SystemExit(f"{figure} is not there: python docs/draw.py draws it")
    print(f"\n![{CHARTS[which]}]({link(figure)})\n")


def benchmark(name: str, module: str) -> None:
    """Print the table that a module of benchmarks/, such as "paper.noise", makes of the record of that name."""
    show(name, "-m", f"benchmarks.{module}", "--show")


def experiment(name: str, module: str) -> None:
    """Print the figure of a module of benchmarks/, and its table folded away."""
    figure = newest(name).with_suffix(".svg")
    print(f"\n![{name}]({link(figure)})\n\n<details><summary>The table, and what it says</summary>")
    benchmark(name, module)
    print("</details>\n")


def said(name: str, module: str, *beginnings: str) -> None:
    """Print of what a module of benchmarks/ makes of its record the lines that begin so, each a paragraph."""
    lines = output("-m", f"benchmarks.{module}", "--show", str(newest(name))).splitlines()
    for beginning in beginnings:
        found = [line for line in lines if line.startswith(beginning)]
        if not found:
            raise SystemExit(f"{module} says nothing that begins with {beginning!r}")
        print("\n" + "\n\n".join(found))
    print()


def section(name: str, module: str, beginning: str) -> None:
    """Print of what a module of benchmarks/ makes of its record the line that begins so, and the table below it."""
    blocks = output("-m", f"benchmarks.{module}", "--show", str(newest(name))).split("\n\n")
    at = next((i for i, block in enumerate(blocks) if block.startswith(beginning)), None)
    if at is None:
        raise SystemExit(f"{module} says nothing that begins with {beginning!r}")
    print("\n" + "\n\n".join(blocks[at : at + 2]) + "\n")


def projection(name: str, *options: str, beside: tuple[str, ...] = ()) -> None:
    """Print the projection from a sweep and others; its figure lies beside it (`--project` its name without .jsonl)."""
    figure, others = newest(name).with_suffix(".svg"), [str(newest(other)) for other in beside]
    print(f"\n![projection]({link(figure)})\n")
    print("<details><summary>The fit, its error, and the break-even bandwidths</summary>")
    with tempfile.TemporaryDirectory() as folder:
        drawn = "--project", f"{folder}/drawn"
        show(name, "-m", "mpisign.report", "--format", "markdown", *options, *drawn, *others)
    print("</details>\n")


def records() -> None:
    """List all records, each with the first line of its table."""
    print()
    for path in sorted(PUBLISHED.glob("*/*.jsonl")):
        record, said = path.relative_to(ROOT), "a benchmark's"
        with path.open() as lines:
            if '"type": "run"' in next(lines):
                said = output("-m", "mpisign.report", "--format", "markdown", str(record)).split("\n", 1)[0]
        print(f"- [`{path.parent.name}/{path.name}`]({link(record)}): {said}")
    print()


def habits() -> None:
    """Print the table of habits, part by part: what tests/habits tries."""
    sys.path.insert(0, str(ROOT / "tests" / "habits"))
    import table

    for title, part in table.PARTS.items():
        print(f"\n## {title}\n\n| what a script does | | what follows, or the cure | tried by |\n|---|---|---|---|")
        for habit in part:
            print(f"| {habit.what} | {habit.verdict} | {habit.note} | `{habit.name}` |")
    print()


def mutants() -> None:
    """Print the table of faulty methods that the checks catch: what tests/bench/test_mutants.py tries."""
    sys.path.insert(0, str(ROOT / "tests" / "bench"))
    from mutants import MUTANTS, WAYS

    print(f"\n| fault | what it does | planted into | {' | '.join(WAYS)} |\n|:--|:--|:--|{':--|' * len(WAYS)}")
    for mutant in MUTANTS:
        caught = " | ".join("caught" if way in mutant.ways else "-" for way in WAYS)
        does = mutant.does + (" (an even number of ranks)" if mutant.even else "")
        print(f"| {mutant.name} | {does} | `{mutant.method}` | {caught} |")
    print()


def draw() -> None:
    """Draw the charts that the pages show, beside their records."""
    for name in CHARTED:
        record = newest(name)
        output("-m", "mpisign.report", str(record), "--figures", str(record.parent))


def main(arguments: list[str]) -> int:
    """Draw everything, or check it; return the exit code."""
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    if not arguments:
        draw()
    command = [sys.executable, "-m", "cogapp", *(arguments or ["-r"]), "-P", "-I", "docs", *PAGES]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
