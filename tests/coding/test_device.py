"""The same laws for all that code, wherever there is a device for it.

On a machine without CUDA, Triton's kernels run in Triton's interpreter: in a process of its own, for Triton reads
TRITON_INTERPRET when it is imported. `test_the_kernels_in_tritons_interpreter` starts it.
"""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from launch import skip_if_quick
from places import INTERPRETED, SIZES, guarded, intact, tensor, words
from reference import awkward

from mpisign.coding import coding, counting
from mpisign.coding.sizes import words_for
from mpisign.coding.ties import TIES, Tie

FILES = [__file__, str(Path(__file__).with_name("test_sign.py"))]
VOTERS = [*range(1, 10), 14, 15, 16, 17, 29, 30, 31, 45, 64]
WIDTHS = [0, 1, 255, 256, 257, 600]


def ballots(P, W, seed=0):
    return np.random.default_rng(seed).integers(0, 2**64, (P, W), np.uint64)


@pytest.mark.parametrize("n", SIZES)
def test_pack_equals_the_reference(n, place):
    buffer, out = guarded((words_for(n),), torch.int64, place)
    assert coding.pack(tensor(awkward(n), place), out) is out
    assert np.array_equal(words(out), reference.pack(awkward(n)))
    assert intact(buffer)


def test_zero_minus_zero_and_nan_are_positive_and_padding_is_zero(place):
    x = torch.tensor([0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 1e-45, -1e-45], device=place)
    assert coding.pack(x).tolist() == [0b10100000]
    assert words(coding.pack(torch.full((65,), -1.0, device=place))).tolist() == [2**64 - 1, 1]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("rows", [None, 1, 2])
def test_unpack_equals_the_reference(n, rows, place):
    voted = ballots(rows or 1, words_for(n), n)
    voted = voted if rows else voted[0]
    buffer, out = guarded((n,), torch.float32, place)
    assert coding.unpack(tensor(voted, place), n, out) is out
    assert np.array_equal(out.cpu(), reference.unpack(voted, n))
    assert intact(buffer)


@pytest.mark.parametrize("rule", TIES)
@pytest.mark.parametrize("P", VOTERS)
def test_majority_equals_the_reference(P, rule, place):
    for W in WIDTHS if P in (2, 16) else WIDTHS[-2:]:
        rows = ballots(P, W, W)
        buffer, out = guarded(counting.voted_shape(W, rule), torch.int64, place)
        assert coding.majority(tensor(rows, place), Tie(rule, 3, 5), out=out) is out
        assert np.array_equal(words(out), reference.majority(rows, rule, 3, 5))
        assert intact(buffer)


@pytest.mark.parametrize("P", [1, 2, 15, 16])
def test_a_vote_may_overwrite_one_of_its_rows(P, place):
    rows = ballots(P, 300)
    ours = tensor(rows, place)
    coding.majority(ours, out=ours[P // 2])
    assert np.array_equal(words(ours[P // 2]), reference.majority(rows))


@pytest.mark.parametrize(("seed", "step"), [(0, 0), (7, 11), (2**70 + 1, 2**40), (-1, 2**64 - 1)])
def test_a_share_throws_the_coins_of_the_whole(seed, step, place):
    rows, tie = ballots(4, 300), Tie("random", seed, step)
    cuts = [0, 1, 100, 300]
    shares = [
        coding.majority(tensor(np.ascontiguousarray(rows[:, start:stop]), place), tie, first_word=start)
        for start, stop in pairwise(cuts)
    ]
    assert np.array_equal(words(torch.cat(shares)), reference.majority(rows, "random", seed, step))


def test_a_vote_goes_there_and_back(place):
    gradients = [awkward(1000, seed) for seed in range(5)]
    packed = torch.stack([coding.pack(tensor(gradient, place)) for gradient in gradients])
    signs = coding.unpack(coding.majority(packed), 1000)
    negative = sum((gradient < 0).astype(int) for gradient in gradients)
    assert np.array_equal(signs.cpu(), np.where(negative > 2, -1, 1))


def test_the_step_of_a_single_word_does_not_matter(place):
    spread = torch.full((8,), -7, dtype=torch.int64, device=place)
    one = coding.pack(torch.full((3,), -1.0, device=place), spread[::4][:1])
    assert spread.tolist() == [7] + [-7] * 7
    assert coding.unpack(one, 3).tolist() == [-1, -1, -1]


def test_words_of_the_host_share_their_memory():
    host = np.zeros(3, np.uint64)
    coding.tensor_of(host)[1] = -1
    assert host.tolist() == [0, 2**64 - 1, 0]
    coding.words_of(coding.tensor_of(host))[0] = 5
    assert host[0] == 5


def test_who_codes_where():
    assert coding.coder(torch.device("cpu")) == "numba"
    assert coding.coder(torch.device("mps")) == "torch"
    with pytest.warns(UserWarning, match="no Triton on cuda:99, plain torch codes there"):
        assert coding.coder(torch.device("cuda:99")) == "torch"


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: coding.pack(torch.zeros(3, dtype=torch.float64)), "x: .*float64"),
        (lambda: coding.pack(torch.zeros(2, 3)), "x: "),
        (lambda: coding.pack(torch.zeros(6)[::2]), "x: .*not contiguous"),
        (lambda: coding.pack(torch.zeros(3, device="meta"), torch.zeros(1, dtype=torch.int64)), "out: .*on meta"),
        (lambda: coding.pack(torch.zeros(65), torch.zeros(1, dtype=torch.int64)), "out: "),
        (lambda: coding.unpack(torch.zeros(1, dtype=torch.int64), 65), "words: "),
        (lambda: coding.unpack(torch.zeros(3, 2, dtype=torch.int64), 65), "words: "),
        (lambda: coding.unpack(torch.zeros(1), 3), "words: .*float32"),
        (lambda: coding.unpack(torch.zeros(1, dtype=torch.int64), 3, torch.zeros(4)), "out: "),
        (lambda: coding.majority(torch.zeros(0, 2, dtype=torch.int64)), "words: no voters"),
        (lambda: coding.majority(torch.zeros(2, 2, dtype=torch.int64), "coin"), "tie: .*'coin'"),
        (lambda: coding.majority(torch.zeros(2, 4, dtype=torch.int64)[:, ::2]), "words: "),
        (lambda: coding.majority(torch.zeros(2, 2, dtype=torch.int64), "zero", out=torch.zeros(2)), "out: "),
    ],
)
def test_faulty_arguments_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def run(*command, **environment):
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, *command], cwd=root, env=os.environ | environment, text=True, capture_output=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_import_needs_no_triton():
    run("-c", "import sys; sys.modules['triton'] = None; import mpisign.coding.coding")


def has_triton():
    found = importlib.util.find_spec("triton") is not None and importlib.metadata.version("triton")
    return found and tuple(map(int, found.split(".")[:2])) >= (3, 3)


without_cuda = pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="here they are tested as all are")
with_triton = pytest.mark.skipif(not has_triton(), reason="Triton is not installed, or too old")


@without_cuda
@with_triton
def test_the_kernels_in_tritons_interpreter():
    """Instead of a CUDA device: the same code, its bounds and its arithmetic, but nothing of its compilation."""
    skip_if_quick()
    output = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "triton", *FILES, TRITON_INTERPRET="1")
    assert " passed" in output
    assert " failed" not in output


COMPILE = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from mpisign import Lion, Noisy, SignSGD, Signum, Stochastic
from mpisign.coding.coding import FLOATS
from mpisign.coding.ties import Tie
from mpisign.coding.kernels import triton as kernels

RULES = SignSGD(), Lion(), Noisy(1.0), Stochastic(1.0)
launched = []

class Launcher:
    def __init__(self, source, metadata):
        pass
    def __call__(self, *arguments):
        launched.append(arguments[:3])

class Driver:
    launcher_cls, arch = Launcher, 0
    utils = property(lambda self: self)
    get_current_device = lambda self: self.arch
    get_current_stream = lambda self, device: 0
    get_current_target = lambda self: GPUTarget("cuda", self.arch, 32)
    get_device_properties = lambda self, device: {"max_shared_mem": 1 << 15}
    load_binary = lambda self, *binary: (None, 0, 0, 0, 1024)
    unload_module = lambda self, module: None

driver.set_active(Driver())
for arch in (80, 90):
    Driver.arch = arch
    x, words = torch.zeros(5001), torch.zeros((31, 79), dtype=torch.int64)
    kernels.pack(x, words[0])
    for rule, dtype in (*((Signum(), dtype) for dtype in FLOATS), *((rule, torch.float32) for rule in RULES)):
        momentum = x if rule.has_momentum else None
        kernels.sign(x.to(dtype), words[0], rule, momentum, momentum, words[1], words[2, :1], 2**63)
        kernels.sign(x.to(dtype), words[0], rule, momentum, momentum, None, None, 2**63)
    for rule, rows in (("positive", 1), ("random", 1), ("zero", 2)):
        kernels.unpack(words[:rows], x)
        for P in (1, 2, 16, 31):
            kernels.majority(words[:P], Tie(rule, 1, 2), words[0], words[1] if rows == 2 else words[0, :0], 0)
assert len(launched) == 2 * (1 + 2 * (4 + 4) + 3 * (1 + 4)), launched
"""


@without_cuda
@with_triton
def test_the_kernels_compile_and_round_each_operation(tmp_path):
    """For two GPUs that are not there, up to a driver that launches nothing."""
    skip_if_quick()
    run("-c", COMPILE, TRITON_CACHE_DIR=str(tmp_path))
    code = {path: path.read_text() for path in tmp_path.rglob("*.ptx")}
    assert not any("fma." in text for text in code.values())
    assert not any(".ftz" in text for text in code.values())
    signs = [text for path, text in code.items() if path.stem == "_sign"]
    assert sum("mul.rn.f32" in text for text in signs) == len(signs) - 2 * 2  # SignSGD has nothing to multiply
    assert len(list(tmp_path.rglob("*.cubin"))) == len(code) > 0
