"""One-bit majority-vote gradient exchange (signSGD): measure it, train with it.

mpirun -n 16 mpisign bench --model resnet50
"""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NoReturn

from . import __version__
from .ranks import launch, options

PROGRAM = "mpisign"
SCRIPTS = Path(__file__).parent / "slurm"
# These are programs of their own too: python -m mpisign.bench
PROGRAMS = {
    "bench": "does the vote pay here? every method exchanges the same gradients",
    "train": "train a classifier by vote, or by another method",
    "report": "draw the tables and charts of records or trainings, or compare records",
    "doctor": "what is wrong with this machine, its MPI or how the ranks were started?",
}


def write_scripts(folder: Path, *, force: bool = False) -> list[Path]:
    """Write the job scripts for Slurm to a folder, executable; return their paths.

    Raises:
        ValueError: one of them is there already, and `force` is not set.
        OSError: a file can't be written.

    """
    scripts = {folder / path.name: path.read_bytes() for path in sorted(SCRIPTS.glob("*.sh"))}
    for path in scripts:
        if path.exists() and not force:
            raise ValueError(f"{path} is there already (--force overwrites it)")
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in scripts.items():
        path.write_bytes(text)
        path.chmod(0o755)
    return list(scripts)


def slurm(arguments: Sequence[str]) -> None:
    """Write the job scripts for Slurm, to edit and to give to sbatch."""
    parser = options.Parser(prog=f"{PROGRAM} slurm", description=slurm.__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to")
    parser.add_argument("--force", action="store_true", help="overwrite scripts that are there")
    given = parser.parse_args(arguments)
    for path in write_scripts(given.folder, force=given.force):
        print(path)


def photos(arguments: Sequence[str]) -> None:
    """Write a small tree of real pictures, cut from scikit-learn's two photographs, to try a training with."""
    from .workload.photos import make_photos

    parser = options.Parser(prog=f"{PROGRAM} photos", description=photos.__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to")
    parser.add_argument(
        "--validate", type=_share, metavar="FRACTION", help="share of pictures for val, 0.2 or 1/5; the rest is train"
    )
    given = parser.parse_args(arguments)
    print(f"{make_photos(given.folder, given.validate)} pictures in {given.folder}")


def _share(text: str) -> Fraction:
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        value = Fraction(0)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return value


WRITERS: dict[str, Callable[[Sequence[str]], None]] = {"slurm": slurm, "photos": photos}


class _Version(argparse.Action):
    """Print the version on one rank and end."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        if launch.launched()[2] == 0:
            print(f"{PROGRAM} {__version__}")
        parser.exit()


def _parser() -> options.Parser:
    described = PROGRAMS | {name: str(write.__doc__).rstrip(".") for name, write in WRITERS.items()}
    listed = "\n".join(f"  {name:<8}{text[0].lower()}{text[1:]}" for name, text in described.items())
    parser = options.Parser(
        prog=PROGRAM,
        description=str(__doc__).splitlines()[0],
        epilog=f"commands (COMMAND --help tells more):\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    parser.add_argument("command", choices=tuple(described), metavar="COMMAND", help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="options of that command")
    return parser


def _refuse(fault: options.UsageError) -> NoReturn:
    """End with code 2, on all ranks if there are several: the others may run a command, and wait for this one."""
    if launch.launched()[1] > 1:
        from .ranks import agreement

        with launch.session(PROGRAM) as comm:
            agreement.understood(comm, PROGRAM, fault)
    launch.refuse(PROGRAM, str(fault))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that is named; return its exit code. A program of its own runs as `python -m` would run it."""
    try:
        given = _parser().parse_args(arguments)
    except options.UsageError as fault:
        _refuse(fault)
    if given.command in PROGRAMS:
        sys.argv[1:] = given.arguments
        runpy.run_module(f"{__package__}.{given.command}", run_name="__main__", alter_sys=True)  # it exits
        return 0
    try:
        WRITERS[given.command](given.arguments)
    except (OSError, ValueError) as error:
        launch.refuse(f"{PROGRAM} {given.command}", str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
