"""Checkpoints of a training: a folder each, whole or not there at all.

`checkpoint-<step>/` holds `model.pt`, the same for all ranks, and `rank-<r>.pt` with what is that rank's own. Rank 0
writes and reads all of them, one rank's after the other's, so only it needs to see the folder, and it never holds more
than one of them. They are read with `torch.load(weights_only=True)`: no code is run from them.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from ..ranks.launch import Comm

FORMAT = 1
_PARTIAL = ".partial"


def path_of(folder: Path, step: int) -> Path:
    """Name the checkpoint after `step` steps."""
    return folder / f"checkpoint-{step:08}"


def saved(folder: Path) -> list[Path]:
    """Return the whole checkpoints in `folder`, the oldest first."""
    return sorted(path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit())


def write(comm: Comm, folder: Path, *, step: int, common: dict[str, Any], own: dict[str, Any], keep: int) -> str | None:
    """Write a checkpoint and remove all but the newest `keep`; return None, or on all ranks why it failed. Collective.

    `common` is taken from rank 0, `own` from each rank. A write that fails leaves the older checkpoints as they were.
    """
    path, fault = path_of(folder, step), None
    partial = folder / f".{path.name}{_PARTIAL}"
    if comm.rank == 0:
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            whole = {"format": FORMAT, "ranks": comm.size, "step": step, **common}
            _write_file(partial / "model.pt", packed(whole))
        except OSError as error:
            fault = str(error)
    for rank in range(comm.size):
        state = _to_root(comm, rank, own)
        if state is not None and fault is None:
            try:
                _write_file(partial / f"rank-{rank}.pt", state)
            except OSError as error:
                fault = str(error)
    if comm.rank == 0:
        try:
            if fault is None:
                _replace(partial, path)
                _sync(folder)
                for old in saved(folder)[:-keep]:
                    with contextlib.suppress(OSError):  # what can't be removed is no fault of the new one
                        _discard(old)
        except OSError as error:
            fault = str(error)
        shutil.rmtree(partial, ignore_errors=True)
    everywhere: str | None = comm.bcast(fault)
    return everywhere


def clear(folder: Path) -> None:
    """Remove what a killed write or removal may have left."""
    for path in folder.glob(f".checkpoint-*{_PARTIAL}"):
        shutil.rmtree(path, ignore_errors=True)


def read(comm: Comm, path: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return what is common to all ranks, and what was this rank's own, or None if it was not there. Collective.

    Raises:
        ValueError: on all ranks: `path` is no whole checkpoint of this format.

    """
    fault = None
    if comm.rank == 0:
        try:
            common = unpacked((path / "model.pt").read_bytes())
            lacking = [f"rank-{rank}.pt" for rank in range(common["ranks"]) if not (path / f"rank-{rank}.pt").is_file()]
            if common["format"] != FORMAT:
                fault = f"has format {common['format']}, this is a reader of format {FORMAT}"
            elif lacking:
                fault = f"lacks {', '.join(lacking)}"
        except UNREADABLE as error:
            fault = unreadable(error)
    fault = comm.bcast(fault)
    if fault is not None:
        raise ValueError(f"resume: {path} {fault}")
    everyones = unpacked(to_all(comm, (path / "model.pt").read_bytes() if comm.rank == 0 else b""))
    own = None
    for rank in range(min(comm.size, everyones["ranks"])):
        state = _from_root(comm, rank, path / f"rank-{rank}.pt")
        if rank == comm.rank:
            try:
                own = unpacked(state)
            except UNREADABLE as error:
                fault = unreadable(error)
    for rank, its_fault in enumerate(comm.allgather(fault)):
        if its_fault is not None:
            raise ValueError(f"resume: {path}/rank-{rank}.pt {its_fault}")
    return everyones, own


# What reading a file may raise.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError)


def unreadable(error: Exception) -> str:
    """Say in one line why a file cannot be read."""
    return f"cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}"


def packed(state: dict[str, Any]) -> bytes:
    """Return what torch.save writes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def unpacked(data: bytes) -> dict[str, Any]:
    """Return what torch.save wrote, on the CPU; no code is run.

    Raises:
        one of UNREADABLE: it is none of that, or no dict.

    """
    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise ValueError("it holds no dict")
    return state


def _to_root(comm: Comm, rank: int, own: dict[str, Any]) -> bytes | None:
    """Bring one rank's state to rank 0, which gets it; all others get None."""
    if comm.rank not in (0, rank):
        return None
    mine = packed(own) if comm.rank == rank else b""
    if rank == 0:
        return mine
    if comm.rank == rank:
        comm.Send(np.array([len(mine)]), 0)
        comm.Send(np.frombuffer(mine, np.uint8), 0)
        return None
    length = np.empty(1, np.int64)
    comm.Recv(length, rank)
    state = np.empty(length[0], np.uint8)
    comm.Recv(state, rank)
    return state.tobytes()


def to_all(comm: Comm, data: bytes) -> bytes:
    """Bring what rank 0 has to all ranks. Collective."""
    length = comm.bcast(len(data))
    sent = np.frombuffer(data, np.uint8) if comm.rank == 0 else np.empty(length, np.uint8)
    comm.Bcast(sent, 0)
    return sent.tobytes()


def _from_root(comm: Comm, rank: int, path: Path) -> bytes:
    """Bring a file that rank 0 reads to one rank; the others get nothing."""
    data = np.frombuffer(path.read_bytes(), np.uint8) if comm.rank == 0 else np.empty(0, np.uint8)
    if rank and comm.rank == 0:
        comm.Send(np.array([len(data)]), rank)
        comm.Send(data, rank)
    elif rank and comm.rank == rank:
        size = np.empty(1, np.int64)
        comm.Recv(size, 0)
        data = np.empty(size[0], np.uint8)
        comm.Recv(data, 0)
    return data.tobytes()


def _write_file(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Have a rename in `folder` outlive a crash."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _discard(path: Path) -> None:
    """Remove a checkpoint: under another name first, so that a half-removed one is never taken for whole."""
    aside = path.with_name(f".{path.name}.old{_PARTIAL}")
    os.rename(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _replace(partial: Path, path: Path) -> None:
    """Put a checkpoint in its place; an older one of the same step is removed when that is done."""
    aside = path.with_name(f".{path.name}.old{_PARTIAL}")
    if path.exists():
        os.rename(path, aside)
    try:
        os.rename(partial, path)
    except OSError:
        if aside.exists():
            os.rename(aside, path)
        raise
    shutil.rmtree(aside, ignore_errors=True)
