"""Checkpoints of a training: a folder each, whole or not there at all.

`checkpoint-<step>/` holds `model.pt`, the same for all ranks, `rank-<r>.pt` with what is that rank's own, and
`SHA256SUMS`, the digest of each of these, as sha256sum writes and checks it. Rank 0 writes and reads all of them, one
rank's after the other's, so only it needs to see the folder, and it never holds more than one of them. They are read
with `torch.load(weights_only=True)`: no code is run from them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shutil
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from ..ranks.launch import Comm

FORMAT = 2  # 1 had no SHA256SUMS
SUMS = "SHA256SUMS"
BROKEN = "broken-"
_PARTIAL = ".partial"


def path_of(folder: Path, step: int) -> Path:
    """Name the checkpoint after `step` steps."""
    return folder / f"checkpoint-{step:08}"


def saved(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, the oldest first."""
    steps = {path: step for path in folder.glob("checkpoint-*") if (step := _step_of(path)) is not None}
    return sorted(steps, key=steps.__getitem__)


def _step_of(path: Path) -> int | None:
    named = re.fullmatch(r"checkpoint-([0-9]{8,18})", path.name)
    return int(named[1]) if named else None


def newest(folder: Path) -> tuple[Path | None, dict[Path, str]]:
    """Return the newest checkpoint in `folder` whose digests are right, and what is wrong with each newer one.

    Raises:
        ValueError: there are checkpoints, and none is whole.

    """
    faults: dict[Path, str] = {}
    for path in reversed(saved(folder)):
        fault = damage(path)
        if fault is None:
            return path, faults
        faults[path] = fault
    for path, fault in faults.items():
        raise ValueError(f"resume: no checkpoint in {folder} is whole: {path} {fault}")
    return None, {}


def damage(path: Path) -> str | None:
    """Say what is wrong with the files of a checkpoint, or None; no more than a block of them is in memory."""
    try:
        told = (path / SUMS).read_bytes().decode("ascii")
        listed = re.findall(r"[0-9a-f]{64}  (model\.pt|rank-[0-9]{1,7}\.pt)\n", told)
        if listed != ["model.pt", *(f"rank-{rank}.pt" for rank in range(len(listed) - 1))] or len(listed) < 2:
            return f"is damaged: {SUMS} is not what was written"
        for name, line in zip(listed, told.splitlines(keepends=True), strict=True):
            if _sum_of(_digest(path / name), name) != line:
                return f"is damaged: {name} is not what was written"
    except FileNotFoundError as error:
        return f"lacks {Path(error.filename).name}"
    except (OSError, ValueError) as error:
        return unreadable(error)
    return None


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _sum_of(digest: str, name: str) -> str:
    """Return a line as sha256sum writes it."""
    return f"{digest}  {name}\n"


def set_aside(folder: Path, step: int) -> None:
    """Rename the checkpoints of after `step`, which a training does not go on from, so that none is taken for its own.

    They are called BROKEN and their name from then on, and are no longer counted or removed.
    """
    for path in saved(folder):
        if (_step_of(path) or 0) > step:
            aside = path.with_name(f"{BROKEN}{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(path, aside)


def write(comm: Comm, folder: Path, *, step: int, common: dict[str, Any], own: dict[str, Any], keep: int) -> str | None:
    """Write a checkpoint and remove all but the newest `keep`; return None, or on all ranks why it failed. Collective.

    `common` is taken from rank 0, `own` from each rank. A write that fails leaves the older checkpoints as they were.
    """
    path, fault, sums = path_of(folder, step), None, ""
    partial = folder / f".{path.name}{_PARTIAL}"
    if comm.rank == 0:
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            whole = {"format": FORMAT, "ranks": comm.size, "step": step, **common}
            sums += _write_file(partial / "model.pt", packed(whole))
        except OSError as error:
            fault = str(error)
    for rank in range(comm.size):
        state = _to_root(comm, rank, own)
        if state is not None and fault is None:
            try:
                sums += _write_file(partial / f"rank-{rank}.pt", state)
            except OSError as error:
                fault = str(error)
    if comm.rank == 0:
        try:
            if fault is None:
                _write_file(partial / SUMS, sums.encode())
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
    fault, data = None, b""
    if comm.rank == 0:
        try:
            data = (path / "model.pt").read_bytes()
            fault = _misfit(unpacked(data), path)
        except (OSError, ValueError) as error:
            fault = unreadable(error)
    fault = comm.bcast(fault)
    if fault is not None:
        raise ValueError(f"resume: {path} {fault}")
    everyones = unpacked(to_all(comm, data))
    own = None
    for rank in range(min(comm.size, everyones["ranks"])):
        state = _from_root(comm, rank, path / f"rank-{rank}.pt")
        if rank == comm.rank:
            try:
                own = unpacked(state)
            except ValueError as error:
                fault = unreadable(error)
    for rank, its_fault in enumerate(comm.allgather(fault)):
        if its_fault is not None:
            raise ValueError(f"resume: {path}/rank-{rank}.pt {its_fault}")
    return everyones, own


def _misfit(common: Mapping[str, Any], path: Path) -> str | None:
    """Say why what is common to all ranks can't be of this checkpoint, or None."""
    told = ("format", "ranks", "step")
    if not all(type(common.get(name)) is int for name in told):
        return "cannot be read: it does not tell its format, ranks and step"
    form, ranks, step = (common[name] for name in told)
    if form != FORMAT:
        return f"has format {form}, this is a reader of format {FORMAT}"
    if not 1 <= ranks <= len(list(path.glob("rank-*.pt"))):
        return f"is of {ranks} ranks, and has not as many files"
    return None if step == _step_of(path) else f"is of step {step}, which is not its name's"


def unreadable(error: Exception) -> str:
    """Say in one line why a file cannot be read."""
    return f"cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}"


def packed(state: dict[str, Any]) -> bytes:
    """Return what torch.save writes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def unpacked(data: bytes) -> dict[str, Any]:
    """Return what torch.save wrote, on the CPU; no code is run, and no more memory is taken than `data` has bytes.

    torch.load itself does not look at the checksums of a file's parts.

    Raises:
        ValueError: it is none of that, it is damaged, or it is no dict.

    """
    buffer = io.BytesIO(data)
    try:
        if zipfile.is_zipfile(buffer):  # all but those of before PyTorch 1.6
            with zipfile.ZipFile(buffer) as archive:
                if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                    raise ValueError("it is compressed, which torch.save does not do")
                damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"it is damaged: the checksum of its part {damaged!r} is wrong")
        buffer.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(buffer, map_location="cpu", weights_only=True)
    except Exception as error:  # what is damaged or made up may raise anything
        raise ValueError(str(error) or type(error).__name__) from None
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
    data = np.empty(0, np.uint8)
    if comm.rank == 0:
        with contextlib.suppress(OSError):  # it was there a moment ago; nothing can't be read, which its rank tells
            data = np.frombuffer(path.read_bytes(), np.uint8)
    if rank and comm.rank == 0:
        comm.Send(np.array([len(data)]), rank)
        comm.Send(data, rank)
    elif rank and comm.rank == rank:
        size = np.empty(1, np.int64)
        comm.Recv(size, 0)
        data = np.empty(size[0], np.uint8)
        comm.Recv(data, 0)
    return data.tobytes()


def _write_file(path: Path, data: bytes) -> str:
    """Write a file to the disk; return its line in SUMS."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return _sum_of(hashlib.sha256(data).hexdigest(), path.name)


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
