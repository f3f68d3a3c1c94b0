"""Numbers as text: times, ratios, sizes and their intervals."""

from __future__ import annotations

from collections.abc import Callable

from .statistics import Median

EXACT = 1e-9  # what is no farther from 1 is 1: it is no more than the rounding of floats


def milliseconds(seconds: float) -> str:
    """Return seconds as milliseconds, four digits."""
    return f"{1e3 * seconds:.4g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def megabytes(count: float) -> str:
    """Return bytes as megabytes, three digits."""
    return f"{count / 1e6:.3g}" if count < 1e9 else f"{count / 1e6:.0f}"


def ratio(value: float | None, places: int = 2) -> str:
    """Return a ratio with so many decimals, large ones without; nothing for None."""
    return "" if value is None else f"{value:.{places}f}" if value < 100 else f"{value:.0f}"


def percent(share: float) -> str:
    """Return a share as per cent, two digits."""
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.0f} %"


def interval(low: float, high: float, *, form: Callable[[float], str]) -> str:
    """Return an interval whose ends `form` writes."""
    return f"[{form(low)}, {form(high)}]"


def ratio_and_interval(middle: Median) -> str:
    """Return a ratio with its interval, as `ratios` writes them."""
    found, low, high = ratios(middle)
    return f"{found} [{low}, {high}]"


def ratios(middle: Median) -> tuple[str, str, str]:
    """Return a ratio and its interval's ends, with so many decimals that an end is 1.00 only if it is 1."""
    near = [end for end in middle[1:] if EXACT < abs(end - 1) < 0.01]
    places = next(places for places in range(2, 10) if all(round(end, places) != 1 for end in near))
    return ratio(middle.median, places), ratio(middle.low, places), ratio(middle.high, places)


def milliseconds_and_interval(middle: Median) -> str:
    """Return seconds with their interval, both as milliseconds."""
    return f"{milliseconds(middle.median)} {interval(middle.low, middle.high, form=milliseconds)}"


def size(count: int) -> str:
    """Return a number of bytes as K, M or G where that is whole."""
    for unit, bytes_of in (("G", 2**30), ("M", 2**20), ("K", 2**10)):
        if count % bytes_of == 0:
            return f"{count // bytes_of}{unit}"
    return str(count)
