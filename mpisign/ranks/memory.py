"""What memory there is: what a node has left, what this process has taken, and how its heap is kept."""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Iterator
from pathlib import Path

MOST_FROM_HEAP = 32 << 20  # bytes of a piece, the most that glibc allows
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
# Where control groups are mounted, and the names of a group's limit, of what it uses, and of what it could give back.
_GROUPS = (
    ("memory", "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ("", "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
)


def keep_heap() -> None:
    """Let the heap keep what is freed, and serve all pieces up to MOST_FROM_HEAP: the steady state, from the start.

    Of itself glibc comes to it by and by, and on the way puts long-lived pieces where they leave holes behind; and now
    and then it gives memory back that is needed a moment later, by a method whose time is taken.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, MOST_FROM_HEAP)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def available(root: Path = Path("/")) -> int | None:
    """Return how many bytes processes can still take on this node; None if Linux does not tell.

    These are what the machine has, or what the control groups of this process have left, whichever is the least.
    """
    found = [*_of_machine(root), *_of_groups(root)]
    return min(found, default=None)


def taken() -> int:
    """Return how many bytes this process has to itself."""
    return _kilobytes(Path("/proc/self/status"), "RssAnon") or 0


def _of_machine(root: Path) -> Iterator[int]:
    found = _kilobytes(root / "proc/meminfo", "MemAvailable")
    if found is not None:
        yield found


def _of_groups(root: Path) -> Iterator[int]:
    """Return what each control group of this process has left, from its own up to the outermost that can be seen."""
    lines = (root / "proc/self/cgroup").read_text().splitlines() if (root / "proc/self/cgroup").exists() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller, mount, limit, used, reclaimable in _GROUPS:
            if controller not in controllers.split(","):
                continue
            group = root / mount / path.lstrip("/")
            for folder in (group, *group.parents):
                with contextlib.suppress(OSError, ValueError):  # no such group here, or "max"
                    most = int((folder / limit).read_text())
                    spare = re.search(rf"^{reclaimable} (\d+)$", (folder / "memory.stat").read_text(), re.M)
                    yield max(0, most - int((folder / used).read_text()) + (int(spare[1]) if spare else 0))
                if folder == root / mount:
                    break


def _kilobytes(file: Path, name: str) -> int | None:
    """Return the bytes that a file of Linux tells in kB, or None."""
    with contextlib.suppress(OSError):
        found = re.search(rf"^{name}:\s+(\d+) kB$", file.read_text(), re.M)
        return int(found[1]) * 1024 if found else None
    return None
