"""The vote's coding where the tensor lives: on the CPU by Numba, on a CUDA device by Triton, elsewhere by plain torch.

All three give the same bits, those of `bits` and `counting`. Words are int64 tensors here, for of uint64 torch has
little more than the name: the same 64 bits. `tensor_of` shows host words as such a tensor.

On a CUDA device the calls return at once; their work is queued on the calling thread's current stream of the device
that the tensors live on.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from . import bits, counting, ties
from .bits import Words
from .counting import voted_shape
from .kernels import torch as torch_kernels
from .sizes import words_for
from .ties import Tie


class Kernels(Protocol):
    """What codes on one kind of device; the arguments have been checked.

    `planes`, int64, are (1, W), or (2, W) where a second row marks ties; `ties` is (W,) under the rule "zero", else
    (W,) or (0,).
    """

    def pack(self, x: Tensor, words: Tensor, /) -> None: ...
    def momentum_pack(self, momentum: Tensor, gradient: Tensor, beta: float, words: Tensor, /) -> None: ...
    def unpack(self, planes: Tensor, x: Tensor, /) -> None: ...
    def majority(self, words: Tensor, tie: Tie, voted: Tensor, ties: Tensor, first_word: int, /) -> None: ...


class _NumbaKernels:
    """The kernels of `bits` and `counting`, on NumPy views of the tensors."""

    def pack(self, x: Tensor, words: Tensor) -> None:
        bits.pack(x, words_of(words))

    def momentum_pack(self, momentum: Tensor, gradient: Tensor, beta: float, words: Tensor) -> None:
        bits.momentum_pack(momentum, gradient, beta, words_of(words))

    def unpack(self, planes: Tensor, x: Tensor) -> None:
        bits.unpack(words_of(planes), x.numel(), x)

    def majority(self, words: Tensor, tie: Tie, voted: Tensor, ties: Tensor, first_word: int) -> None:
        counting.vote_into(words_of(words), tie, words_of(voted), words_of(ties), first_word)


def coder(device: torch.device) -> str:
    """Return what codes the tensors of a device: "numba", "triton" or "torch"."""
    if device.type == "cpu":
        return "numba"
    return "triton" if device.type == "cuda" and _triton_works(device) else "torch"


@functools.cache
def _triton_works(device: torch.device) -> bool:
    """Return whether Triton is there and can compile and run, or warn: it needs a C compiler and a driver it knows."""
    try:
        from .kernels import triton as triton_kernels

        with torch.cuda.device(device):
            words = torch.zeros((2, 1), dtype=torch.int64, device=device)
            triton_kernels.pack(torch.zeros(1, device=device), words[0])
            triton_kernels.majority(words, Tie(), words[0], words[0, :0], 0)
    except Exception as error:  # of many classes, and none of them is worth the run: plain torch gives the same bits
        warnings.warn(f"no Triton on {device}, plain torch codes there, slower: {error!r}", stacklevel=3)
        return False
    return True


@contextlib.contextmanager
def _kernels(x: Tensor) -> Iterator[Kernels]:
    """Choose the kernels for a tensor and, as Triton launches on the current device, make the tensor's that."""
    name = coder(x.device)
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        if name == "numba":
            yield _NumbaKernels()
        elif name == "torch":
            yield torch_kernels
        else:
            from .kernels import triton as triton_kernels

            yield triton_kernels


@contextlib.contextmanager
def on_host(tensor: Tensor) -> Iterator[Tensor]:
    """Yield a tensor of the host to work on in place of `tensor`: itself if it is one, else a copy that goes back."""
    host = tensor.cpu()
    yield host
    if host is not tensor:
        tensor.copy_(host)


def tensor_of(words: Words) -> Tensor:
    """Return words of the host, uint64, as an int64 tensor that shares their memory."""
    return torch.from_numpy(words.view(np.int64))


def words_of(tensor: Tensor) -> Words:
    """Return an int64 tensor of the CPU as words, uint64, that share its memory."""
    return tensor.numpy().view(np.uint64)


def _check(name: str, x: Tensor, dtype: torch.dtype, shape: tuple[int | None, ...], device: torch.device) -> None:
    """Raise a ValueError that calls `x` `name` if it is not contiguous, of `dtype`, `shape` (None: any), `device`."""
    fits = x.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, x.shape, strict=True))
    if x.dtype != dtype or not fits or not x.is_contiguous() or x.device != device:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(
            f"{name}: expected contiguous {dtype} of shape ({wanted}) on {device}, "
            f"got {x.dtype} of {tuple(x.shape)} on {x.device}" + ("" if x.is_contiguous() else ", not contiguous")
        )


def _output(out: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> Tensor:
    if out is None:
        return torch.empty(shape, dtype=dtype, device=device)
    _check("out", out, dtype, shape, device)
    return out


def pack(x: Tensor, out: Tensor | None = None) -> Tensor:
    """Pack the signs of `x`, float32 (n,), into words, int64 (W,); `out` receives them if given.

    Raises:
        ValueError: `x` or `out` has another dtype, shape or device, or is not contiguous.

    """
    _check("x", x, torch.float32, (None,), x.device)
    out = _output(out, torch.int64, (words_for(x.numel()),), x.device)
    with _kernels(x) as kernels:
        kernels.pack(x, out)
    return out


def momentum_pack(momentum: Tensor, gradient: Tensor, beta: float, out: Tensor | None = None) -> Tensor:
    """Set m <- m + (1 - beta) * (g - m) in place and pack its signs, in one pass: see `bits.momentum_pack`.

    Raises:
        ValueError: a tensor has another dtype, shape or device, or is not contiguous, or beta is not in [0, 1).

    """
    _check("gradient", gradient, torch.float32, (None,), gradient.device)
    n = gradient.numel()
    _check("momentum", momentum, torch.float32, (n,), gradient.device)
    if not 0 <= beta < 1:
        raise ValueError(f"beta: must be in [0, 1), got {beta}")
    out = _output(out, torch.int64, (words_for(n),), gradient.device)
    with _kernels(gradient) as kernels:
        kernels.momentum_pack(momentum, gradient, beta, out)
    return out


def unpack(words: Tensor, n: int, out: Tensor | None = None) -> Tensor:
    """Turn words, int64 (W,), into signs, float32 (n,) of +1 and -1, in `out` if given.

    `words` may be (2, W) as the tie rule "zero" gives it: where the second row has a 1, the result is 0.

    Raises:
        ValueError: `words` or `out` has another dtype, shape or device, or is not contiguous.

    """
    planes = words if words.ndim == 2 else words[None]
    rows = 2 if len(planes) == 2 else 1
    _check("words", planes, torch.int64, (rows, words_for(n)), words.device)
    out = _output(out, torch.float32, (n,), words.device)
    with _kernels(words) as kernels:
        kernels.unpack(planes, out)
    return out


def vote_into(words: Tensor, tie: Tie, voted: Tensor, ties: Tensor, first_word: int = 0) -> None:
    """Vote on `words`, int64 (P, W), into `voted`, (W,), which may be one of its rows: see `counting.vote_into`.

    `ties`, (W,), receives the tied coordinates under the rule "zero", else it may be empty. Nothing is checked.
    """
    with _kernels(words) as kernels:
        kernels.majority(words, tie, voted, ties, first_word)


def majority(words: Tensor, tie: str | Tie = "positive", *, out: Tensor | None = None, first_word: int = 0) -> Tensor:
    """Return the majority of P sign vectors, int64 (P, W): (W,), or (2, W) under "zero", as `counting.majority` does.

    `out` receives it if given; one of (W,) may be a row of `words`. `first_word` is the place of these words in the
    whole vector, so that whoever votes on a share throws the same coins.

    Raises:
        ValueError: a tensor has another dtype, shape or device, P is 0, or the tie rule is unknown.

    """
    tie = Tie(tie) if isinstance(tie, str) else tie
    ties.check_tie(tie.rule)
    _check("words", words, torch.int64, (None, None), words.device)
    P, W = words.shape
    if not P:
        raise ValueError("words: no voters")
    out = _output(out, torch.int64, voted_shape(W, tie.rule), words.device)
    vote_into(words, tie, *((out[0], out[1]) if tie.rule == "zero" else (out, out[:0])), first_word)
    return out
