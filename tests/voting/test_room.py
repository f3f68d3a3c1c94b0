"""Plans of several states take turns in one memory: what one of them is given is its own, and all of it is cleared."""

import numpy as np
import pytest

from mpisign.voting.room import Room

SHAPES = [(3, 5), (7,), (0,), (2, 3, 4), (1,), (64,)]


def test_pieces_of_a_plan_do_not_overlap_and_are_0():
    room = Room()
    zeros = room.lease(0)
    pieces = [zeros(*shape) for shape in SHAPES]
    assert [piece.shape for piece in pieces] == SHAPES
    for number, piece in enumerate(pieces, 1):
        assert not piece.any()
        piece[:] = number
    assert all((piece == number).all() for number, piece in enumerate(pieces, 1))


@pytest.mark.parametrize("shapes", [SHAPES, SHAPES[::-1], [(2000,), *SHAPES]])
def test_another_plan_of_a_bucket_gets_the_same_memory_and_one_of_another_bucket_does_not(shapes):
    room = Room()
    first, other = room.lease(0), room.lease(1)
    taken = [first(*shape) for shape in SHAPES]
    apart = [other(*shape) for shape in SHAPES]
    for piece in taken:
        piece[:] = 7
    second = room.lease(0)
    again = [second(*shape) for shape in shapes]
    assert not any(piece.any() for piece in again)
    assert any(np.shares_memory(a, b) for a in taken for b in again)
    assert not any(np.shares_memory(a, b) for a in apart for b in (*taken, *again))


def test_plans_of_the_same_shapes_take_no_more_memory_than_one():
    room = Room()
    for _ in range(3):
        zeros = room.lease(0)
        for shape in SHAPES:
            zeros(*shape)
    once = room.nbytes
    assert once <= 8 * sum(-(-int(np.prod(shape)) // 8) * 8 for shape in SHAPES)
    pieces = [room.lease(0)(*shape) for shape in SHAPES]
    pieces[0][:] = 1
    room.clear()
    assert not pieces[0].any()
    assert room.nbytes == once
