"""What the READMEs show, drawn from the newest records in results/published/; cog runs it (`make readme`).

Runs of one's own go to other folders of results/, and are shown nowhere.

python docs/draw.py draws the charts that are among it.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PUBLISHED = ROOT / "results" / "published"
CHARTED = ("resnet50-16-ranks",)
CHARTS = {"breakdown": "Where an iteration's time goes, method by method",
          "distribution": "Every sample of each method, with medians and intervals"}  # fmt: skip


def newest(name: str) -> Path:
    """Return the newest record of that name; its file name begins with its date."""
    found = sorted(PUBLISHED.glob(f"*/*-{name}.jsonl"), key=lambda path: path.name)
    if not found:
        raise SystemExit(f"no record of {name} in results/published/")
    return found[-1].relative_to(ROOT)


def show(name: str, *command: str, base: str = "") -> None:
    """Print what `command` makes of the newest record of that name, and where it is; `base` leads to the root."""
    record = newest(name)
    drawn = subprocess.run(
        [sys.executable, *command, str(record)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    print(f"\nFrom [`{record}`]({base}{record}):\n\n{drawn.stdout.rstrip()}\n")


def report(name: str) -> None:
    """Print the tables of a run of the bench."""
    show(name, "-m", "mpisign.report", "--format", "markdown")


def charts(name: str) -> None:
    """Print the charts of a run of the bench, which `draw` left beside its record."""
    record = newest(name)
    for chart, says in CHARTS.items():
        figure = record.with_name(f"{record.stem}-{chart}.svg")
        if not (ROOT / figure).exists():
            raise SystemExit(f"{figure} is not there: python docs/draw.py draws it")
        print(f"\n![{says}]({figure})")
    print()


def draw() -> None:
    """Draw the charts that the READMEs show, beside their records."""
    for name in CHARTED:
        record = newest(name)
        command = [sys.executable, "-m", "mpisign.report", str(record), "--figures", str(record.parent)]
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)


def benchmark(name: str, module: str) -> None:
    """Print the table that a module of benchmarks/, such as "paper.noise", makes of the records of that name."""
    show(name, "-m", f"benchmarks.{module}", "--show")


def experiment(name: str, module: str) -> None:
    """Print the figure of a module of benchmarks/, and its table folded away."""
    figure = newest(name).with_suffix(".svg")
    print(f"\n![{name}]({figure})\n\n<details><summary>What it says: the table, and its reading</summary>")
    benchmark(name, module)
    print("</details>\n")


def projection(name: str, *options: str, beside: tuple[str, ...] = ()) -> None:
    """Print the projection from a sweep and others; its figure lies beside it (`--project` its name without .jsonl)."""
    figure, others = newest(name).with_suffix(".svg"), [str(newest(other)) for other in beside]
    print(f"\n![projection]({figure})\n\n<details><summary>The fit, its error, and the break-even bandwidths</summary>")
    with tempfile.TemporaryDirectory() as folder:
        drawn = "--project", f"{folder}/drawn"
        show(name, "-m", "mpisign.report", "--format", "markdown", *options, *drawn, *others)
    print("</details>\n")


def records() -> None:
    """List all records, each with its head line."""
    sys.path.insert(0, str(ROOT))
    from mpisign.report import records, table

    print()
    for path in sorted(PUBLISHED.glob("*/*.jsonl")):
        first = path.read_text().split("\n", 1)[0]
        said = table.title(records.read(path)) if '"type": "run"' in first else "a file of benchmarks/"
        print(f"- [`{path.parent.name}/{path.name}`]({path.relative_to(PUBLISHED.parent)}): {said}")
    print()


if __name__ == "__main__":
    draw()
