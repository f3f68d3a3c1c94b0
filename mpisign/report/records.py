"""A run as JSON lines: what was asked, what the machine was, every sample of every rank.

The first line has type "run" (config, machine, methods, traffic), the last one "end". Between them are the samples,
each of one iteration and rank: lines of type "compute"; "exchange", of one method, on that iteration's gradient; and
under the schedule "overlap" also "overlapped", a whole iteration of one method. Times are seconds, sizes are bytes.

The first line says what its methods are, so that no reader has to know their names: `kinds` has for each of them
"ceiling" (it sends nothing, and has no result), "rival" or "vote"; `lossy` lists those that have no exact result.

`clock` is how times are taken. 1: momentum and gradient were written just before the clock of a held gradient started,
and overlapped dense methods had buckets of one size; these records do not say so. 2: `gloo`, `nccl` and `mpi` divided
the gradient within the clock, the heap was glibc's own, and in overlapped iterations the step found what the check had
read. 3 is the one of today.

`block` is how many overlapped iterations a method has in a row, else 1.

`network`, which older records lack, is what is known of the network (`mpisign/ranks/wires.py`, `network`).

The last line's `worst` lists what was wrong where no sample was kept, in the warm-up and after the run: method, wrong
coordinates, and in a sweep's warm-up bytes.

Formats: 1 had no schedule; 2 had no `kinds` and no `lossy`; 3 is the one written here.

With --trace each sample is followed by lines of type "span", one for each thread that worked on it: what it belongs
to (`of`, the type of the sample), and its spans as [name, when it began, how long it took], seconds since the start by
rank 0's clock.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .harmless import all_printable

FORMAT = 3
CLOCK = 3
# What must agree before two runs are compared, as far as their records tell it.
FACTS = {
    "machine": ("cpu", "cores", "device", "ranks", "nodes", "bound", "torch_threads", "gpus", "device_memory_fault",
                "mpi", "thread_level", "launcher", "python", "torch", "numba", "mpi4py"),
    "config": ("model", "batch_size", "image_size", "data", "sizes", "schedule", "bucket_mb", "tie", "momentum",
               "adversaries", "adversary", "share_gpus", "trace"),
    "network": ("transport", "settings", "links", "gloo"),
}  # fmt: skip
NOT_OF_A_SWEEP = {"model", "batch_size", "image_size", "data", "schedule", "bucket_mb"}  # of "config"


@dataclass
class Run:
    """One run of the bench: `head` is the first line of its file, `end` the last.

    `baselines` is how many methods could have been its baseline: more than one if it was chosen with the times known.
    """

    head: dict[str, Any]
    samples: list[dict[str, Any]] = field(default_factory=list)
    end: dict[str, Any] = field(default_factory=dict)
    baselines: int = 1

    @property
    def kinds(self) -> dict[str, str]:
        """The kind of each method: "ceiling", "rival" or "vote"."""
        kinds: dict[str, str] = self.head["kinds"]
        return kinds

    @property
    def asked(self) -> dict[str, Any]:
        """What was asked of the run, without what does not apply: a sweep has no model, pictures, buckets, schedule."""
        config: dict[str, Any] = self.head["config"]
        return {name: value for name, value in config.items() if not (config["sizes"] and name in NOT_OF_A_SWEEP)}

    @property
    def replicas_differ(self) -> bool:
        """Whether the replicas of the model came to differ between ranks."""
        return self.end.get("replicas_identical") is False

    @property
    def compute(self) -> list[dict[str, Any]]:
        """What each rank's own work of an iteration took."""
        return self._of("compute")

    @property
    def exchange(self) -> list[dict[str, Any]]:
        """What each rank's exchange of a gradient took, method by method."""
        return self._of("exchange")

    @property
    def overlapped(self) -> list[dict[str, Any]]:
        """What each rank's whole iterations took that overlapped the exchange, method by method."""
        return self._of("overlapped")

    @property
    def spans(self) -> list[dict[str, Any]]:
        """When each span of a sample began and how long it took, thread by thread; empty without --trace."""
        return self._of("span")

    def _of(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in self.samples if line["type"] == kind]

    def lines(self) -> list[str]:
        """Return the run as JSON lines."""
        return [json.dumps(part, allow_nan=False) for part in (self.head, *self.samples, self.end)]


def read(path: Path) -> Run:
    """Read a run, line by line, and check it (`schema`, `whole`): what does not print is escaped in its texts.

    Raises:
        ValueError: the file is no record of a finished run of this format, or is at fault; the text names the line.
        OSError: it cannot be read.

    """
    from . import schema, whole  # the doctor runs without what they need

    with path.open("rb") as file:
        head = _first_line(path, file.readline())
        samples: list[dict[str, Any]] = []
        seen: set[tuple[Any, ...]] = set()  # the fields and their types, by which lines are checked that are alike
        end, number = None, 1
        for number, text in enumerate(file, whole.FIRST):
            try:
                if end is not None:
                    raise ValueError("comes after the line of type end; a file has one record")
                try:
                    line: dict[str, Any] = schema.decode(text)
                except ValueError:
                    line = schema.parsed(text)
                    if line.get("type") == "run":
                        raise ValueError("a second line of type run; a file has one record") from None
                    if line.get("type") == "end":
                        end = all_printable(line)
                        schema.check_end(end, head)
                        continue
                    schema.check_line(line)
                    raise
                alike = str(line.get("type")), *line, *map(type, line.values())
                if alike not in seen:
                    schema.check_line(line)
                    seen.add(alike)
                if line.get("seconds", 1) < whole.SHORTEST:
                    schema.check_line(line)
                samples.append(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    if end is None:
        raise ValueError(f"{path}: no record of a finished run of mpisign.bench (no line of type end)")
    try:
        whole.check(head, samples)
    except ValueError as error:
        raise ValueError(f"{path}, {error}") from None
    return Run(head, samples, end)


def _first_line(path: Path, text: bytes) -> dict[str, Any]:
    """Return the first line of a record, checked, with what older ones did not tell."""
    from . import schema

    try:
        head = schema.parsed(text)
    except ValueError as error:
        raise ValueError(f"{path}: no record of mpisign ({error})") from None
    if head.get("type") != "run" or "format" not in head:
        raise ValueError(f"{path}: no record of a finished run of mpisign.bench")
    if head["format"] != FORMAT:
        raise ValueError(
            f"{path}: no record that this reader knows: it has format {head['format']!r:.20}, not {FORMAT}"
        )
    try:
        head = dict(all_printable(head))
        head.setdefault("clock", 1)
        schema.check_head(head)
    except ValueError as error:
        raise ValueError(f"{path}, line 1: {error}") from None
    head.setdefault("block", 2 if head["config"]["schedule"] == "overlap" else 1)  # it was not always told
    return head


def write(path: Path, lines: Iterable[str]) -> None:
    """Write a text whole or not at all, as `write_bytes` does."""
    write_bytes(path, "".join(line + "\n" for line in lines).encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, making its folder.

    Raises:
        OSError: it could not be written; nothing is left of it.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def unwritable(path: Path) -> str | None:
    """Say why a file could not be written at `path`, or None; nothing is made or changed."""
    if path.exists() and not path.is_file():
        return f"{path} is a folder" if path.is_dir() else f"{path} is no ordinary file"
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        return f"{folder} is not a folder"
    return None if os.access(folder, os.W_OK | os.X_OK) else f"{folder} is not writable"


def differences(*runs: Run) -> list[str]:
    """Name the facts of FACTS in which runs differ, of those that have them."""
    facts_of = [run.head | {"config": run.asked} for run in runs]
    told = {(part, name): [of[part][name] for of in facts_of if name in of.get(part, {})]
            for part, names in FACTS.items() for name in names}  # fmt: skip
    told["", "clock"] = [run.head["clock"] for run in runs]
    facts = []
    for (_, name), values in told.items():
        different = [value for at, value in enumerate(values) if value not in values[:at]]
        if len(different) > 1:
            facts.append(f"{name}: {' and '.join(map(str, different))}")
    return facts


def folder_name(facts: dict[str, Any]) -> str:
    """Name a machine's folder below `results/` by what it is, not by what it is called."""
    device = re.sub(r"\((r|tm)\)|@.*|\b(cpu|processor)\b", " ", facts["device"], flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9]+", "-", f"{device} {facts['cores']} cores".lower()).strip("-")
