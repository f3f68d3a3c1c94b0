"""What the lines of a record may hold: fields, types and bounds. What is not named here is let through.

Lines are decoded as mappings (`decode`): they have spans of any name. `check_line`, `check_head` and `check_end` hold
them against the fields that the report relies on. Faults are ValueErrors that begin with the field: "config.sizes[0]".
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

Line = dict[str, Any]

# The bounds keep sums, ratios and products within what floats and whole numbers hold: no clock tells 32 years.
Natural = Annotated[int, Meta(ge=0, le=2**53)]
Positive = Annotated[int, Meta(ge=1, le=2**53)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Whole = Annotated[float, Meta(ge=1e-9, le=1e9)]  # seconds of all that was timed: they are divided by
Amount = Annotated[float, Meta(ge=0, le=1e18)]
Number = Annotated[float, Meta(ge=-1e18, le=1e18)]
Moment = Annotated[float, Meta(ge=-1e9, le=1e9)]

Span = tuple[str, Moment, Seconds]  # its name, when it began, how long it took
Type = Literal["compute", "exchange", "overlapped"]


class Compute(Struct):
    """What a rank's own work of an iteration took."""

    iteration: Natural
    rank: Natural
    data: Seconds
    forward: Seconds
    backward: Seconds
    step: Seconds


class Exchange(Struct):
    """What a rank's exchange of a gradient took. All other fields are seconds of spans."""

    iteration: Natural
    rank: Natural
    method: str
    seconds: Whole
    wrong: Natural
    bytes: Positive | UnsetType = UNSET


class Overlapped(Compute):
    """What a rank's whole iteration took that overlapped the exchange. All other fields are seconds of spans."""

    method: str
    seconds: Whole
    wrong: Natural


class Spans(Struct):
    """The time line of a thread in a sample."""

    iteration: Natural
    rank: Natural
    of: Type
    thread: Literal["training", "vote", "exchange"]
    spans: list[Span]
    method: str | UnsetType = UNSET
    bytes: Positive | UnsetType = UNSET


LINES: dict[str, type[Struct]] = {
    "compute": Compute, "exchange": Exchange, "overlapped": Overlapped, "span": Spans
}  # fmt: skip


class Config(Struct):
    """What was asked."""

    model: str
    batch_size: Positive
    image_size: Positive
    data: str
    sizes: list[Positive]
    schedule: Literal["serial", "overlap"]
    tie: Literal["positive", "random", "zero"]
    momentum: Number
    adversaries: Natural
    adversary: str
    seed: int
    warmup: Natural
    bucket_mb: Amount | None = None
    until: Amount | None = None
    time_cap: Amount = 0.0
    trace: bool = False


class Machine(Struct):
    """What the ranks ran on; versions are null where a package is missing."""

    device: str
    cores: Positive
    nodes: Positive
    ranks: Positive
    ranks_per_core: Amount
    torch_threads: Natural
    mpi: str
    thread_level: str
    torch: str | None
    numba: str | None
    mpi4py: str | None
    python: str
    commit: str | None
    launcher: str | UnsetType = UNSET
    gpus: Natural = 0
    bound: bool | None = None
    device_memory_fault: str | UnsetType | None = UNSET


class Network(Struct):
    """What is known of the network; the last three are of the pair of ranks that tried it."""

    by: str
    transport: str
    drivers: list[str]
    settings: dict[str, str]
    nodes: Positive
    links: Annotated[list[dict[str, Amount | None]], Meta(min_length=1)]
    gloo: list[str]
    pair: tuple[Natural, Natural] | None
    latency_s: Seconds | UnsetType = UNSET
    bandwidth: Amount | UnsetType = UNSET
    carried: list[str] | UnsetType = UNSET


class Head(Struct):
    """The first line."""

    type: Literal["run"]
    format: int
    config: Config
    machine: Machine
    methods: Annotated[list[str], Meta(min_length=1)]
    kinds: dict[str, Literal["ceiling", "rival", "vote"]]
    lossy: list[str]
    traffic: dict[str, dict[str, tuple[list[Natural], list[Natural]]]]
    skipped: dict[str, str]
    baseline: str | None
    clock: int = 1
    block: Positive = 1
    coordinates: Positive | UnsetType = UNSET
    network: Network | UnsetType = UNSET
    created: str = ""


class Worst(Struct):
    """Wrong results where no sample was kept."""

    method: str
    wrong: Natural
    bytes: Positive | UnsetType = UNSET


class Measuring(Struct):
    """What measuring costs."""

    span_s: Seconds
    barrier_s: Seconds
    spans_per_iteration: Natural
    check_s: Seconds
    check_pieces_s: Seconds | UnsetType = UNSET
    keep_pieces_s: Seconds | UnsetType = UNSET


class Bucket(Struct):
    """A bucket of DDP, and at what share of backward it is ready."""

    bytes: Natural
    ready: Number


class End(Struct):
    """The last line."""

    type: Literal["end"]
    wrong: Natural
    wall_s: Seconds
    peak_bytes: Annotated[list[Natural], Meta(min_length=1)]
    replicas_identical: bool | UnsetType = UNSET
    worst: list[Worst] = []
    checked_whole: bool = False
    measuring: Measuring | UnsetType = UNSET
    buckets: Annotated[list[Bucket], Meta(min_length=1)] | UnsetType = UNSET
    clock_error_s: Seconds | UnsetType = UNSET


# Quick, and enough for the lines of samples: what is let through here by its value, `check_line` judges by its type.
decode = msgspec.json.Decoder(dict[str, Natural | Seconds | str | list[Span]]).decode


def parsed(text: bytes) -> Line:
    """Return any line of a record.

    Raises:
        ValueError: it is no JSON object.

    """
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(told(error)) from None


def check_line(line: Line) -> None:
    """Raise a ValueError if the types of a sample's fields are not those of its type of line."""
    kind = line.get("type")
    if not isinstance(kind, str) or kind not in LINES:
        raise ValueError(f"type: expected one of {', '.join(LINES)}, got {kind!r:.40}")
    fields = LINES[kind]
    check(line, fields)
    for name in line.keys() - set(fields.__struct_fields__) - {"type"}:
        check({name: line[name]}, dict[str, Seconds], name)


def check(value: Any, fields: Any, name: str = "") -> None:
    """Raise a ValueError, which names the field, unless a value has these fields; `name` is the value's own."""
    try:
        msgspec.convert(value, fields)
    except msgspec.MsgspecError as error:
        raise ValueError(told(error, name)) from None


def told(error: Exception, name: str = "") -> str:
    """Return what a fault of msgspec says, the field first; `name` is that of a field whose name it does not tell."""
    said, _, where = str(error).replace("`", "").partition(" - at ")
    lacks = re.sub(r"^Object missing required field (\w+)$", r"has no \1", said)
    said = lacks if lacks.startswith("JSON") else lacks[:1].lower() + lacks[1:]
    field = where.replace("$[...]", name or "$[...]", 1).removeprefix("$").removeprefix(".")
    return f"{field}: {said}" if field else said


def check_head(head: Line) -> None:
    """Raise a ValueError if the first line of a record will not do."""
    check(head, Head)
    config, machine, methods, kinds = (head[name] for name in ("config", "machine", "methods", "kinds"))
    sizes, P = config["sizes"], machine["ranks"]
    for name, values in (("methods", methods), ("config.sizes", sizes)):
        for at, value in enumerate(values):
            if value in values[:at]:
                raise ValueError(f"{name}[{at}]: {value!r:.80} comes twice")
    for at, method in enumerate(methods):
        if not method or not method.isprintable():
            raise ValueError(f"methods[{at}]: {method!r:.80} is empty or does not print")
        if method not in kinds:
            raise ValueError(f"kinds: has no {method}")
    if head["baseline"] not in (None, *methods):
        raise ValueError(f"baseline: {head['baseline']!r:.80} is not among the methods")
    if kinds.get(head["baseline"]) == "ceiling":
        raise ValueError(f"baseline: {head['baseline']} is a ceiling, which nothing can be held against")
    if sizes and config["schedule"] != "serial":
        raise ValueError("config.schedule: a sweep over sizes is serial")
    if not sizes and "coordinates" not in head:
        raise ValueError("has no coordinates")
    if machine["nodes"] > P:
        raise ValueError(f"machine.nodes: {machine['nodes']} nodes of {P} ranks")
    for lacks, part, name in (
        (machine["mpi"] == "none", "machine", "launcher"),
        (machine.get("gpus"), "machine", "device_memory_fault"),
        (config.get("until"), "config", "time_cap"),
        *((head.get("network", {}).get("pair"), "network", name) for name in ("latency_s", "bandwidth", "carried")),
    ):
        if lacks and name not in head[part]:
            raise ValueError(f"{part}: has no {name}")
    _check_traffic(head["traffic"], [str(size) for size in sizes] or ["model"], methods, P)


def _check_traffic(traffic: Line, of: list[str], methods: list[str], P: int) -> None:
    for what in of:
        for method in methods:
            booked = traffic.get(what, {}).get(method)
            if booked is None:
                raise ValueError(f"traffic: has no {method} of {what}")
            if any(len(way) != P for way in booked):
                raise ValueError(f"traffic.{what}.{method}: expected sent and received bytes of {P} ranks")


def check_end(end: Line, head: Line) -> None:
    """Raise a ValueError if the last line of a record will not do."""
    check(end, End)
    for at, worst in enumerate(end.get("worst", ())):
        if worst["method"] not in head["methods"]:
            raise ValueError(f"worst[{at}].method: {worst['method']!r:.80} is not among the methods")
    measuring = end.get("measuring", {})
    if "keep_pieces_s" in measuring and "check_pieces_s" not in measuring:
        raise ValueError("measuring: has no check_pieces_s")
    if len(end["peak_bytes"]) != head["machine"]["ranks"]:
        raise ValueError(f"peak_bytes: expected those of {head['machine']['ranks']} ranks")
