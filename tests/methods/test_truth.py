import torch

from mpisign.methods.truth import GLIMPSE, Result, look


def test_what_is_written_while_a_result_is_read_is_noticed():
    buffer = torch.zeros(3 * GLIMPSE + 5)
    for begin, end in ((0, 1), (3 * GLIMPSE + 4, None), (GLIMPSE - 1, 2 * GLIMPSE)):
        result = Result(buffer)
        buffer[begin:end] += 1  # whoever writes is ahead of `read`
        result.read()
        assert result.changed
    (result,), (momentum,) = look([buffer], [torch.ones(1)])
    assert not result.changed
    assert not momentum.changed
    buffer[7] = -0.0  # the glimpse does not see it
    assert result.changed
    assert look([buffer, buffer[:0]], [None, None])[1] == [None, None]
