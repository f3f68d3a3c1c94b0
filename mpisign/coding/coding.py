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
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import bits, counting, ties
from .bits import Words
from .counting import voted_shape
from .kernels import torch as torch_kernels
from .rules import Rule, check_rule
from .sizes import BITS, words_for
from .ties import Tie

FLOATS = torch.float32, torch.bfloat16, torch.float16, torch.float64  # of gradients and voted signs
_SIGNED = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
CHUNK = 1 << 18  # coordinates that are converted at once on the CPU: 1 MiB of float32, which stays in its caches


class Kernels(Protocol):
    """What codes on one kind of device; the arguments have been checked.

    `planes`, int64, are (1, W), or (2, W) where a second row marks ties; `ties` is (W,) under the rule "zero", else
    (W,) or (0,).
    """

    def pack(self, x: Tensor, words: Tensor, /) -> None: ...
    def sign(
        self, gradient: Tensor, words: Tensor, rule: Rule, momentum: Tensor | None, moved: Tensor | None,
        zeros: Tensor | None, faults: Tensor | None, key: int, /,
    ) -> None: ...  # fmt: skip
    def unpack(self, planes: Tensor, x: Tensor, /) -> None: ...
    def majority(self, words: Tensor, tie: Tie, voted: Tensor, ties: Tensor, first_word: int, /) -> None: ...
    def silent(self, gradient: Tensor, sizes: Sequence[int], /) -> NDArray[np.bool_]: ...
    def count_ones(self, words: Tensor, total: Tensor, /) -> None: ...
    def count_differing(self, a: Tensor, b: Tensor, total: Tensor, /) -> None: ...
    def fill_zeros(self, words: Tensor, zeros: Tensor, key: int, /) -> None: ...


def _as_float32(x: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield (place of its first coordinate, float32 tensor) for the parts of a vector: one if it is float32."""
    if x.dtype == torch.float32:
        yield 0, x
        return
    scratch = torch.empty(min(CHUNK, x.numel()), dtype=torch.float32)
    for at in range(0, x.numel(), CHUNK):
        part = x[at : at + CHUNK]
        yield at, scratch[: len(part)].copy_(part)


class _NumbaKernels:
    """The kernels of `bits` and `counting`, on NumPy views of the tensors."""

    def pack(self, x: Tensor, words: Tensor) -> None:
        bits.pack(x, words_of(words))

    def sign(
        self, gradient: Tensor, words: Tensor, rule: Rule, momentum: Tensor | None, moved: Tensor | None,
        zeros: Tensor | None, faults: Tensor | None, key: int,
    ) -> None:  # fmt: skip
        signs, found = words_of(words), 0
        m, v = (None if x is None else x.numpy() for x in (momentum, moved))
        z = None if zeros is None else words_of(zeros)
        for at, part in _as_float32(gradient):
            stop = at + len(part)
            here, there = slice(at, stop), slice(at // BITS, words_for(stop))
            found += bits.sign_part(
                part.numpy(), signs[there], rule, None if m is None else m[here], None if v is None else v[here],
                None if z is None else z[there], key, first=at,
            )  # fmt: skip
        if faults is not None:
            faults += found

    def unpack(self, planes: Tensor, x: Tensor) -> None:
        if x.dtype == torch.float32:
            bits.unpack(words_of(planes), x.numel(), x)
            return
        scratch = torch.empty(min(CHUNK, x.numel()), dtype=torch.float32)
        for at in range(0, x.numel(), CHUNK):
            part = x[at : at + CHUNK]
            some = words_of(planes)[:, at // BITS : words_for(at + len(part))]
            bits.unpack(np.ascontiguousarray(some), len(part), scratch[: len(part)])
            part.copy_(scratch[: len(part)])

    def majority(self, words: Tensor, tie: Tie, voted: Tensor, ties: Tensor, first_word: int) -> None:
        counting.vote_into(words_of(words), tie, words_of(voted), words_of(ties), first_word)

    def silent(self, gradient: Tensor, sizes: Sequence[int]) -> NDArray[np.bool_]:
        return bits.silent(gradient.view(_SIGNED[gradient.element_size()]).numpy(), sizes)

    def count_ones(self, words: Tensor, total: Tensor) -> None:
        total += bits.count_ones(words_of(words))

    def count_differing(self, a: Tensor, b: Tensor, total: Tensor) -> None:
        total += bits.count_differing(words_of(a), words_of(b))

    def fill_zeros(self, words: Tensor, zeros: Tensor, key: int) -> None:
        bits.fill_zeros(words_of(words), words_of(zeros), key)


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


def _check_floats(name: str, x: Tensor, shape: tuple[int | None, ...], device: torch.device) -> None:
    if x.dtype not in FLOATS:
        raise ValueError(f"{name}: expected one of {', '.join(map(str, FLOATS))}, got {x.dtype}")
    _check(name, x, x.dtype, shape, device)


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


def sign(
    gradient: Tensor, words: Tensor, *, rule: Rule, momentum: Tensor | None = None, moved: Tensor | None = None,
    zeros: Tensor | None = None, faults: Tensor | None = None, key: int = 0,
) -> None:  # fmt: skip
    """Sign a gradient by a rule and move its momentum, in one pass where it lies: see `bits.sign`.

    `gradient` is (n,) of one of FLOATS, converted to float32; `words`, int64 (W,), receives the signs, `zeros`, int64
    (W,), the coordinates that are 0. `momentum` and `moved` are float32 (n,). To `faults`, int64 (1,), the number of
    coordinates that were not finite is added, without a wait of the host.

    Raises:
        ValueError: a tensor has another dtype, shape or device, or is not contiguous; the rule is faulty, or there is
            a momentum where the rule has none, or none where it has one.

    """
    n, W, device = gradient.numel(), words_for(gradient.numel()), gradient.device
    _check_floats("gradient", gradient, (None,), device)
    check_rule(rule)
    bits.check_momentum(rule, momentum, moved)
    wanted = {"momentum": (momentum, torch.float32, n), "moved": (moved, torch.float32, n),
              "words": (words, torch.int64, W), "zeros": (zeros, torch.int64, W),
              "faults": (faults, torch.int64, 1)}  # fmt: skip
    for name, (x, dtype, size) in wanted.items():
        if x is not None:
            _check(name, x, dtype, (size,), device)
    with _kernels(gradient) as kernels:
        kernels.sign(gradient, words, rule, momentum, momentum if moved is None else moved, zeros, faults, key)


def unpack(words: Tensor, n: int, out: Tensor | None = None) -> Tensor:
    """Turn words, int64 (W,), into signs, (n,) of +1 and -1: float32, or in `out`, which may be of any of FLOATS.

    `words` may be (2, W) as the tie rule "zero" gives it: where the second row has a 1, the result is 0.

    Raises:
        ValueError: `words` or `out` has another dtype, shape or device, or is not contiguous.

    """
    planes = words if words.ndim == 2 else words[None]
    rows = 2 if len(planes) == 2 else 1
    _check("words", planes, torch.int64, (rows, words_for(n)), words.device)
    out = torch.empty(n, dtype=torch.float32, device=words.device) if out is None else out
    _check_floats("out", out, (n,), words.device)
    with _kernels(words) as kernels:
        kernels.unpack(planes, out)
    return out


def silent(gradient: Tensor, sizes: Sequence[int]) -> NDArray[np.bool_]:
    """Return for each parameter whether all of its gradient is 0 or -0.0: bool (len(sizes),), on the host.

    `gradient` is (n,) of one of FLOATS, and `sizes`, whose sum is n, says how many coordinates each parameter has. A
    NaN is not 0. On a device the host waits for the answer.

    Raises:
        ValueError: `gradient` has another dtype or is not contiguous, or the sizes do not add up to n.

    """
    _check_floats("gradient", gradient, (None,), gradient.device)
    if sum(sizes) != gradient.numel():
        raise ValueError(f"sizes: add up to {sum(sizes)}, gradient has {gradient.numel()} coordinates")
    with _kernels(gradient) as kernels:
        return kernels.silent(gradient, sizes)


def count_ones(words: Tensor, total: Tensor) -> None:
    """Add the number of ones in `words`, int64 (W,), to `total`, int64 (1,), in place and without a wait of the host.

    Raises:
        ValueError: a tensor has another dtype, shape or device, or is not contiguous.

    """
    _check("words", words, torch.int64, (None,), words.device)
    _check("total", total, torch.int64, (1,), words.device)
    with _kernels(words) as kernels:
        kernels.count_ones(words, total)


def count_differing(a: Tensor, b: Tensor, total: Tensor) -> None:
    """Add the number of bits in which `a` and `b`, int64 (W,), differ to `total`: see `count_ones`."""
    _check("a", a, torch.int64, (None,), a.device)
    _check("b", b, torch.int64, tuple(a.shape), a.device)
    _check("total", total, torch.int64, (1,), a.device)
    with _kernels(a) as kernels:
        kernels.count_differing(a, b, total)


def fill_zeros(words: Tensor, zeros: Tensor, key: int) -> None:
    """Give the coordinates that `zeros` marks a random sign: see `bits.fill_zeros`. Both are int64 (W,)."""
    _check("words", words, torch.int64, (None,), words.device)
    _check("zeros", zeros, torch.int64, tuple(words.shape), words.device)
    with _kernels(words) as kernels:
        kernels.fill_zeros(words, zeros, key)


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
