"""Vector instructions that LLVM has and Python has not, for use inside Numba kernels.

Each is written in LLVM's portable vector types, so one source becomes AVX2, AVX-512, NEON or SVE code. Arrays must
be C-contiguous; offsets count elements and are not checked. `Lanes` is a value of LANES uint64 words.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model

LANES = 8  # words in a vector: one cache line, one AVX-512 register, two AVX2 registers

_I1, _I8, _I32, _I64 = (ir.IntType(bits) for bits in (1, 8, 32, 64))
_WORDS = ir.VectorType(_I64, LANES)
_FLOATS = ir.VectorType(ir.FloatType(), 64)
_BITS = ir.VectorType(_I1, 64)


class Lanes(types.Type):  # type: ignore[misc]
    """LANES words side by side in registers."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


lanes = Lanes()


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _WORDS)


def _define(operation: Any, instruction: str) -> None:
    """Give `lanes OP lanes` its LLVM instruction."""

    class Template(ConcreteTemplate):  # type: ignore[misc]
        cases = (signature(lanes, lanes, lanes),)

    infer_global(operation)(Template)

    @lower_builtin(operation, lanes, lanes)
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*args)


_define(operator.and_, "and_")
_define(operator.or_, "or_")
_define(operator.xor, "xor")


def _address(context: Any, builder: Any, array_type: Any, array: Any, offset: Any, kind: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), kind.as_pointer())


def _load(builder: Any, address: Any, align: int) -> Any:
    value = builder.load(address)
    value.align = align  # an element's: NumPy does not align to vectors
    return value


def _store(builder: Any, value: Any, address: Any, align: int) -> None:
    builder.store(value, address).align = align


def _broadcast(builder: Any, value: Any, kind: Any) -> Any:
    nothing = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(nothing, value, _I32(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_I32, kind.count), [0] * kind.count))


def _negative(builder: Any, floats: Any) -> Any:
    """Turn 64 floats into a word: one bit each, set where x < 0, so not for -0.0 and NaN."""
    return builder.bitcast(builder.fcmp_ordered("<", floats, ir.Constant(_FLOATS, [0.0] * 64)), _I64)


@intrinsic
def load(typing: Any, words: Any, offset: Any) -> Any:
    """Return words[offset : offset + LANES] as Lanes."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _load(builder, _address(context, builder, sig.args[0], args[0], args[1], _WORDS), 8)

    return lanes(words, types.intp), codegen


@intrinsic
def store(typing: Any, words: Any, offset: Any, value: Any) -> Any:
    """Set words[offset : offset + LANES] from Lanes."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _store(builder, args[2], _address(context, builder, sig.args[0], args[0], args[1], _WORDS), 8)
        return context.get_dummy_value()

    return types.void(words, types.intp, lanes), codegen


@intrinsic
def prefetch(typing: Any, words: Any, offset: Any) -> Any:
    """Ask for the cache line of words[offset] soon; an offset past the end is harmless."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address = _address(context, builder, sig.args[0], args[0], args[1], _I8)
        kind = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [address, _I32(0), _I32(3), _I32(1)])  # for reading, into every cache, data
        return context.get_dummy_value()

    return types.void(words, types.intp), codegen


@intrinsic
def negative64(typing: Any, floats: Any, offset: Any) -> Any:
    """Return the word whose bit j is floats[offset + j] < 0."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _negative(builder, _load(builder, _address(context, builder, sig.args[0], args[0], args[1], _FLOATS), 4))

    return types.uint64(floats, types.intp), codegen


@intrinsic
def finite64(typing: Any, gradient: Any, momentum: Any, offset: Any) -> Any:
    """Return False if any of 64 differences g - m is not finite, and perhaps where they are huge; `momentum`: or None.

    The sum of the 64 tells, in fewer instructions than they would take one by one.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        total = _load(builder, _address(context, builder, sig.args[0], args[0], args[2], _FLOATS), 4)
        if not isinstance(momentum, types.NoneType):
            m = _load(builder, _address(context, builder, sig.args[1], args[1], args[2], _FLOATS), 4)
            total = builder.fsub(total, m)
        size = 32
        while size >= 8:  # the lanes of a register of AVX
            low, high = (ir.Constant(ir.VectorType(_I32, size), [*range(at, at + size)]) for at in (0, size))
            total = builder.fadd(*(builder.shuffle_vector(total, total, half) for half in (low, high)))
            size //= 2
        nothing = builder.fsub(total, total)
        finite = builder.fcmp_ordered("==", nothing, ir.Constant(nothing.type, [0.0] * 8))
        return builder.icmp_unsigned("==", builder.bitcast(finite, _I8), _I8(255))

    return types.boolean(gradient, momentum, types.intp), codegen


@intrinsic
def sign64(
    typing: Any, gradient: Any, start: Any, momentum: Any, moved: Any, offset: Any,
    keep: Any, vote: Any, noise: Any, scale: Any,
) -> Any:  # fmt: skip
    """Sign 64 coordinates: those from `start` on of `gradient`, from `offset` on of `momentum` and `moved`.

    d = g - m; moved = m + keep * d; u = m + vote * d. Return the words of u + scale * noise < 0 and of u == 0; `noise`
    holds 64. `momentum` and `moved` are None for m = 0 and u = d, `vote` is None for that of `keep`, `scale` is None
    for no noise.
    """
    has_momentum, has_vote, has_noise = (not isinstance(x, types.NoneType) for x in (momentum, vote, scale))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        gradient, start, momentum, moved, offset, keep, vote, noise, scale = range(9)

        def at(array: int, offset: Any) -> Any:
            return _address(context, builder, sig.args[array], args[array], offset, _FLOATS)

        def add_weighted(x: Any, weight: int, y: Any) -> Any:
            return builder.fadd(x, builder.fmul(_broadcast(builder, args[weight], _FLOATS), y))

        u = _load(builder, at(gradient, args[start]), 4)
        if has_momentum:
            m = _load(builder, at(momentum, args[offset]), 4)
            d = builder.fsub(u, m)
            u = after = add_weighted(m, keep, d)
            _store(builder, after, at(moved, args[offset]), 4)
            u = add_weighted(m, vote, d) if has_vote else after
        zero = builder.fcmp_ordered("==", u, ir.Constant(_FLOATS, [0.0] * 64))
        if has_noise:
            u = add_weighted(u, scale, _load(builder, at(noise, ir.Constant(args[offset].type, 0)), 4))
        told = [_negative(builder, u), builder.bitcast(zero, _I64)]
        return context.make_tuple(builder, sig.return_type, told)

    result = types.UniTuple(types.uint64, 2)
    return result(gradient, types.intp, momentum, moved, types.intp, keep, vote, noise, scale), codegen


@intrinsic
def ones(typing: Any, word: Any) -> Any:
    """Return how many bits of a word are 1."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.int64(types.uint64), codegen


@intrinsic
def signs64(typing: Any, word: Any, ties: Any, floats: Any, offset: Any) -> Any:
    """Set floats[offset + j] to -1 where bit j of `word` is set, else +1; to 0 where bit j of `ties` is."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        minus, plus, zero = (ir.Constant(_FLOATS, [x] * 64) for x in (-1.0, 1.0, 0.0))
        signs = builder.select(builder.bitcast(args[0], _BITS), minus, plus)
        signs = builder.select(builder.bitcast(args[1], _BITS), zero, signs)
        _store(builder, signs, _address(context, builder, sig.args[2], args[2], args[3], _FLOATS), 4)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, floats, types.intp), codegen


@intrinsic
def spread(typing: Any, word: Any) -> Any:
    """Return Lanes that all hold `word`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _broadcast(builder, args[0], _WORDS)

    return lanes(types.uint64), codegen


def _full_adder(builder: Any, a: Any, b: Any, c: Any) -> tuple[Any, Any]:
    half = builder.xor(a, b)
    return builder.xor(half, c), builder.or_(builder.and_(a, b), builder.and_(half, c))


@intrinsic(prefer_literal=True)
def tally(typing: Any, words: Any, offset: Any, stride: Any, rows: Any) -> Any:
    """Count the ones of `rows` rows, bit by bit: a carry-save network (rows = 2^m - 1, a literal).

    Row r is words[offset + r * stride :][:LANES]. Return the m planes of the counts, lowest first.
    """
    size = rows.literal_value
    planes = size.bit_length()

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        at, column = args[1], []
        for _ in range(size):
            column.append(_load(builder, _address(context, builder, sig.args[0], args[0], at, _WORDS), 8))
            at = builder.add(at, args[2])
        counted = []
        for _ in range(planes):
            # Three bits of one weight become one of it and one of the next, until one is left.
            carries = []
            while len(column) > 1:
                kept, carry = _full_adder(builder, *(column.pop(0) for _ in range(3)))
                column.append(kept)
                carries.append(carry)
            counted.append(column[0])
            column = carries
        return context.make_tuple(builder, sig.return_type, counted)

    return types.UniTuple(lanes, planes)(words, types.intp, types.intp, rows), codegen
