"""Where the coding is tested: all coders, each on what there is for it. `conftest` makes the fixture `place` of it."""

import os

import numpy as np
import pytest
import torch

from mpisign.coding import coding

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GUARD = 64  # elements on both sides of an output that must stay as they were
SIZES = [0, 1, 63, 64, 65, 127, 128, 64 * 5 + 1, 2048, 2 * 2048 + 65]

PLACES = [("numba", "cpu"), ("torch", "cpu")] + [("triton", "cpu")] * INTERPRETED
if torch.cuda.is_available() and not INTERPRETED:
    PLACES += [("torch", "cuda"), ("triton", "cuda")]


@pytest.fixture(params=PLACES, ids="-".join)
def place(request, monkeypatch):
    """Make one coder code, and return the device it does it on."""
    name, where = request.param
    monkeypatch.setattr(coding, "coder", lambda _: name)
    return torch.device(where)


def tensor(array, place):
    """Words are shown as int64."""
    return torch.from_numpy(array.view(np.int64) if array.dtype == np.uint64 else array.copy()).to(place, copy=True)


def words(tensor):
    return coding.words_of(tensor.cpu())


def guarded(shape, dtype, place):
    """Return a buffer full of sevens, and a tensor in its midst to write to."""
    size = int(np.prod(shape))
    buffer = torch.full((size + 2 * GUARD,), 7, dtype=dtype, device=place)
    return buffer, buffer[GUARD : GUARD + size].view(shape)


def intact(buffer):
    return bool((buffer[:GUARD] == 7).all() and (buffer[-GUARD:] == 7).all())
