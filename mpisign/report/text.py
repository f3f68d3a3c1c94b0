"""Numbers as text: times, ratios, sizes and their intervals."""

from __future__ import annotations

import shutil
import textwrap

from .statistics import Median

EXACT = 1e-9  # what is no farther from 1 is 1: it is no more than the rounding of floats
PLACES = 4  # decimals of a ratio at most
DIGITS = 4  # of a time
WIDTH, NARROWEST = 110, 60  # columns of a terminal that lines are wrapped to, at most and at least


def terminal_width() -> int:
    """Return how many columns lines are wrapped to here: the terminal's, if there is one."""
    return min(WIDTH, max(NARROWEST, shutil.get_terminal_size((WIDTH, 24)).columns))


def paragraph(words: str, width: int, *, first: str = "", rest: str = "") -> str:
    """Return words as lines of so many columns, after a `first` indent and the `rest` of them."""
    return textwrap.fill(words, width, initial_indent=first, subsequent_indent=rest, break_long_words=False,
                         break_on_hyphens=False)  # fmt: skip


def milliseconds(seconds: float, digits: int = DIGITS) -> str:
    """Return seconds as milliseconds, so many digits or all whole ones."""
    return f"{1e3 * seconds:.{digits}g}" if 1e3 * seconds < 10**digits - 0.5 else f"{1e3 * seconds:.0f}"


def megabytes(count: float) -> str:
    """Return bytes as megabytes, three digits."""
    return f"{count / 1e6:.3g}" if count < 1e9 else f"{count / 1e6:.0f}"


def count(number: int) -> str:
    """Return a number of coordinates, a large one with three digits."""
    return str(number) if number < 10**6 else f"{number:.3g}"


def ratio(value: float | None, places: int = 2) -> str:
    """Return a ratio with so many decimals, large ones without; nothing for None."""
    return "" if value is None else f"{value:.{places}f}" if value < 100 else f"{value:.0f}"


def percent(share: float) -> str:
    """Return a share as per cent, two digits."""
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.0f} %"


def ratio_and_interval(middle: Median) -> str:
    """Return a ratio with its interval, as `ratios` writes them."""
    found, low, high = ratios(middle)
    return f"{found} [{low}, {high}]"


def ratios(middle: Median) -> tuple[str, str, str]:
    """Return a ratio and its interval's ends, with so many decimals that an end is 1.00 only if it is 1.

    An end that would take more than PLACES is "<1" or ">1".
    """
    near = [end for end in middle[1:] if EXACT < abs(end - 1) < 0.01]
    places = next((places for places in range(2, PLACES) if all(round(end, places) != 1 for end in near)), PLACES)
    low, high = (
        f"{'<' if end < 1 else '>'}1" if end in near and round(end, places) == 1 else ratio(end, places)
        for end in middle[1:]
    )
    return ratio(middle.median, places), low, high


def milliseconds_and_interval(middle: Median, digits: int = DIGITS) -> str:
    """Return seconds with their interval, both as milliseconds."""
    found, low, high = (milliseconds(seconds, digits) for seconds in middle)
    return f"{found} [{low}, {high}]"


def size(number: int) -> str:
    """Return a number of bytes as K, M or G where that is whole."""
    for unit, bytes_of in (("G", 2**30), ("M", 2**20), ("K", 2**10)):
        if number % bytes_of == 0:
            return f"{number // bytes_of}{unit}"
    return str(number)
