"""A command's options: one frozen dataclass, turned into argparse and kept whole in the record."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from . import launch, torchrun

T = TypeVar("T")


class UsageError(ValueError):
    """What is wrong with a command line, perhaps that of one rank alone."""


class Parser(argparse.ArgumentParser):
    """An argparse parser for many ranks: one of them prints the help, and what is wrong is raised."""

    def error(self, message: str) -> NoReturn:
        """Raise a UsageError."""
        raise UsageError(f"{message} (--help lists the options)")

    def print_help(self, file: Any = None) -> None:
        """Print the help on one rank."""
        if launch.launched()[2] == 0:
            super().print_help(file)


def option(default: Any, help_text: str, **argument: Any) -> Any:
    """Declare a field of a command's dataclass; `argument` goes to `add_argument` (type, choices, metavar...)."""
    return dataclasses.field(default=default, metadata={"help": help_text, **argument})


def parse(command: type[T], prog: str, description: str, arguments: Sequence[str] | None = None) -> T | UsageError:
    """Return an instance of the dataclass `command` from the command line, or what is wrong with that.

    A rank that is alone is refused at once, or one of torchrun, which starts all ranks alike and ends all with the
    first; else the ranks must meet first (`agreement.understood`): the others may
    have been started with another command line, and would wait for ever for one that has left.
    """
    parser = Parser(prog=prog, description=description)
    for field in dataclasses.fields(command):  # type: ignore[arg-type]
        settings = {"default": field.default, "type": type(field.default), **field.metadata}
        if field.default is False:
            settings.pop("type")
            settings["action"] = "store_true"
        elif field.default not in (None, "", ()):
            settings["help"] += " (default: %(default)s)"
        parser.add_argument("--" + field.name.replace("_", "-"), **settings)
    try:
        return command(**vars(parser.parse_args(arguments)))
    except UsageError as fault:
        if launch.launched()[1] == 1 or torchrun.launcher():
            launch.refuse(prog, str(fault))
        return fault


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    return _at_least(1, text)


def natural(text: str) -> int:
    """Parse a whole number of at least 0."""
    return _at_least(0, text)


def number(text: str) -> float:
    """Parse a number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def fraction(text: str) -> float:
    """Parse a number in [0, 1)."""
    value = number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


def not_negative(text: str) -> float:
    """Parse a finite number of at least 0."""
    value = number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no finite number of at least 0")
    return value


def above_0(text: str) -> float:
    """Parse a finite number above 0."""
    value = number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no finite number above 0")
    return value


def names(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Make a parser of known names with commas between."""

    def parse_names(text: str) -> tuple[str, ...]:
        asked = tuple(dict.fromkeys(text.split(",")))
        for name in asked:
            if name not in known:
                raise argparse.ArgumentTypeError(f"unknown name {name!r}, choose from {', '.join(known)}")
        return asked

    return parse_names


def _at_least(least: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < least:
        raise argparse.ArgumentTypeError(f"{text} is less than {least}")
    return value


def sizes(text: str) -> tuple[int, ...]:
    """Parse LOW:HIGH[:FACTOR], bytes with K, M or G, into LOW, LOW * FACTOR, ... up to HIGH; FACTOR is 4."""
    parts = text.split(":")
    try:
        if not 2 <= len(parts) <= 3:
            raise ValueError
        low, high = (_bytes(part) for part in parts[:2])
        factor = int(parts[2]) if len(parts) == 3 else 4
        if not 4 <= low <= high or factor < 2:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no range of sizes: write LOW:HIGH[:FACTOR], such as 1K:256M, 4 bytes or more, rising"
        ) from None
    stepped = []
    while low <= high:
        stepped.append(low // 4 * 4)
        low *= factor
    return tuple(stepped)


def _bytes(text: str) -> int:
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    unit = units.get(text[-1:].upper(), 1)
    return int(text if unit == 1 else text[:-1]) * unit
