"""Print records or trainings as tables, draw their charts, make a page of them. Needs neither MPI nor torch.

python -m mpisign.report FILE... [--figures FOLDER] [--html FILE]
python -m mpisign.report RUN/log.jsonl... [--figures FOLDER] [--html FILE]
python -m mpisign.report compare OLD... --with NEW...
"""

from __future__ import annotations

import argparse
import gc
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ..ranks.options import above_0, not_negative
from .formats import FORMATS
from .harmless import printable

# Modules that load NumPy are imported after parsing, so that --help is quick.

PROGRAM = "mpisign.report"


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description=__doc__.splitlines()[0],
        epilog=f"{PROGRAM} compare OLD... --with NEW... holds records against others (compare --help tells more). "
        "A record that is itself called compare is ./compare.",
    )
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="a record of mpisign.bench, or a training's log.jsonl",
    )
    parser.add_argument("--baseline", metavar="METHOD", help="compare all methods with this one")
    parser.add_argument("--format", choices=FORMATS, help="(default: table, or none where files are written)")
    parser.add_argument("--wide", action="store_true", help="print all columns, which takes a wide terminal")
    parser.add_argument("--per-iteration", action="store_true", help="print each iteration too")
    parser.add_argument(
        "--figures", type=Path, metavar="FOLDER", help="write the charts as RECORD-CHART.svg and .png; of several "
        "records, alike in all but the number of ranks, scaling.svg too; of trainings training-epochs, -steps, -hours",
    )  # fmt: skip
    parser.add_argument("--html", type=Path, metavar="FILE", help="write tables, charts and facts as one page")
    parser.add_argument("--trace", type=Path, metavar="OUT", help="write the time line of one record for Perfetto")
    _add_projection(parser)
    options = parser.parse_args(arguments)
    if options.trace and len(options.files) != 1:
        parser.error(f"--trace takes one record, got {len(options.files)}")
    return options


def _add_projection(parser: argparse.ArgumentParser) -> None:
    """Add what `--project` takes."""
    group = parser.add_argument_group("projection to another network, from sweeps (mpisign.bench --sizes)")
    add = group.add_argument
    add(
        "--project",
        type=Path,
        metavar="OUT",
        help="fit FILEs, draw OUT.svg and OUT.png; one FILE may be a run of a model, for its compute and size",
    )
    add("--bandwidth", type=above_0, default=10.0, metavar="GBITS", help="Gbit/s, as hosts vary (default: %(default)s)")
    add("--ranks", type=int, default=16, metavar="P", help="hosts, as bandwidth varies (default: %(default)s)")
    add("--latency-us", type=above_0, metavar="US", help="of a message (default: as fitted)")
    add("--compute-ms", type=above_0, metavar="MS", help="of an iteration (default: of the model's run)")
    add("--coordinates", type=int, metavar="D", help="of the gradient (default: the run's, or ResNet-50's)")
    add("--project-methods", metavar="NAMES", help="separated by commas (default: all that were swept)")


def _parse_compare(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} compare",
        description="Say what became faster, slower or indistinguishable from some records to others.",
        epilog="Each record is one start of a run. With four or more on each side their starts are tested by "
        "permutation; with fewer, how much one start differs from the next is not known. Interleave old and new starts "
        "(old, new, old, new): drift between two blocks of starts is no difference of the code. "
        "Exit code: 0 if nothing is slower, 3 if something is slower or wrong, 2 if the records can't be compared.",
    )
    parser.add_argument("old", nargs="+", type=Path, metavar="OLD", help="records that mpisign.bench left")
    parser.add_argument(
        "--with",
        nargs="+",
        type=Path,
        dest="new",
        metavar="NEW",
        help="the records to compare with those; one OLD and one NEW need no --with",
    )
    parser.add_argument(
        "--at-least", type=_percent, metavar="PERCENT", help="count no smaller difference, such as 10%% (default: 10%% "
        "with fewer than four records on a side, else 0)",
    )  # fmt: skip
    parser.add_argument("--anyway", action="store_true", help="compare although the runs' facts differ")
    parser.add_argument("--format", choices=("table", "markdown"), default="table", help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.new is None:
        if len(options.old) != 2:
            parser.error("give two records, OLD and NEW, or OLD... --with NEW...")
        options.old, options.new = options.old[:1], options.old[1:]
    return options


def _percent(text: str) -> float:
    """Parse a percentage, such as 10%, into a share."""
    return not_negative(text.removesuffix("%")) / 100


def _run(arguments: Sequence[str]) -> int:
    """Parse, and call what is asked for; return its exit code."""
    if arguments[:1] == ["compare"]:
        options = _parse_compare(arguments[1:])
        from . import compare

        return compare.main(options)
    options = _parse(arguments)
    from . import training_log

    if training_log.are(options.files):
        from . import training

        return training.main(options)
    if options.trace:
        from . import trace

        return trace.main(options)
    if options.project:
        from . import projection

        return projection.main(options)
    from . import redraw

    return redraw.main(options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return _run(given)
    except (OSError, ValueError) as error:
        print(printable(f"{PROGRAM}: error: {error}"), file=sys.stderr)
        return 2


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it quietly
    gc.disable()  # a long record is very many objects, none of them in a cycle
    sys.exit(main())
