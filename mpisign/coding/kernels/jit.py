"""Compile with Numba, once per machine: the compiled code is kept on disk and every rank loads it.

Numba notices a change of the file that a function stands in, but not of the files it calls into. So the
cache folder bears a digest of all the package's sources: code compiled from other sources is never loaded.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
from filelock import FileLock


@functools.cache
def cache_folder() -> Path | None:
    """Return the folder for compiled code, or None where this user can write nowhere.

    It lies below ``NUMBA_CACHE_DIR``, else ``XDG_CACHE_HOME``, else ``~/.cache``. Never in a folder that other
    users can write to: what Numba loads from its cache it executes.
    """
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parents[2].rglob("*.py")):
        digest.update(source.read_bytes())
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        root = Path(numba.config.CACHE_DIR or Path(home) / "mpisign")
        folder = root / digest.hexdigest()[:16]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o022:
            return None
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # read-only, or no home folder at all
        return None


@functools.cache
def _lock() -> contextlib.AbstractContextManager[Any]:
    """Return the lock, shared by all processes that use the folder, under which code is loaded or compiled.

    Ranks that start together wait for the first one and load what it compiled. And they must: two processes that
    save different code of one function at once give both the same file name, and one then runs the other's code.
    """
    folder = cache_folder()
    return contextlib.nullcontext() if folder is None else FileLock(folder / "lock", thread_local=False)


@contextlib.contextmanager
def _cached_here() -> Iterator[bool]:
    """Let Numba choose our folder for what is decorated inside; yield whether there is one."""
    folder, before = cache_folder(), numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(folder or before)
    try:
        yield folder is not None
    finally:
        numba.config.CACHE_DIR = before


def kernel(function: Callable[..., Any]) -> Any:
    """Compile `function` at its first call for the argument types it is given; it runs without the GIL."""
    with _cached_here() as cache:
        dispatcher = numba.njit(nogil=True, cache=cache, error_model="numpy")(function)
    compile_alone = dispatcher.compile

    def compile_in_turn(signature: Any) -> Any:
        with _lock():
            return compile_alone(signature)

    dispatcher.compile = compile_in_turn
    return dispatcher


def callback(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function now to one that C can call: `.address` is its pointer."""

    def decorate(function: Callable[..., Any]) -> Any:
        with _cached_here() as cache, _lock():
            return numba.cfunc(signature, nopython=True, cache=cache)(function)

    return decorate
