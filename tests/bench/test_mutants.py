"""Collective: run under mpirun. Each faulty method of mutants.py is caught in each way that it is marked with."""

import contextlib
import dataclasses

import numpy as np
import pytest
import torch
from mutants import ALL, HELD, MUTANTS, WAYS, plant
from PIL import Image

from mpisign.bench.config import Config
from mpisign.bench.contest import Contest
from mpisign.bench.measure import measure
from mpisign.bench.setting import new_run, settle
from mpisign.bench.turn import play
from mpisign.methods.method import Terms
from mpisign.methods.table import METHODS, ready
from mpisign.ranks.group import process_group
from mpisign.train import setting as train_setting
from mpisign.train.recipe import Recipe
from mpisign.train.stop import Agreed
from mpisign.train.training import Training
from mpisign.voting.bucket import HeldBucket

pytestmark = pytest.mark.mpi
RANKS = (2, 3)  # with ties and without
# Of the parameters of each bucket: more than a piece, a matrix, padding.
SHAPES = (((3,), (62,)), ((700, 200),), ((1,), (60,), (4,)), ((65,),))
STEPS = 4  # PowerSGD compresses from the third one on
ITERATIONS = 3  # in which the pieces cover a bucket


def ways_of(name):
    """Return in which ways a method can be tried: PowerSGD neither sweeps nor trains."""
    return HELD if name.startswith("powersgd") else ALL


RIGHT = sorted({mutant.method for mutant in MUTANTS})


@pytest.fixture(scope="module", autouse=True)
def torch_distributed(comm):
    torch.set_num_threads(1)
    with process_group(comm, "gloo", one_node=True):
        yield


PARAMETERS = [[torch.zeros(shape) for shape in shapes] for shapes in SHAPES]  # what momentum belongs to


def gradient(comm, step):
    """Return the buckets of a step; every tenth coordinate is 0, and rank 0 alone has a gradient of some parameters."""
    noise = torch.Generator().manual_seed(100 * step + comm.rank)
    buckets = []
    for number, parts in enumerate(PARAMETERS):
        drawn = [torch.randn(part.numel(), generator=noise) for part in parts]
        for part in drawn:
            part[1::10] = 0.0
        if comm.rank and len(parts) > 1:
            drawn[1].zero_()
        buckets.append(HeldBucket(number, torch.cat(drawn), parts, number == len(SHAPES) - 1))
    return buckets


@contextlib.contextmanager
def planted(comm, name, mutant=None):
    mutant_terms = {} if mutant is None else {"tie": mutant.rule, "momentum": mutant.momentum}
    terms = Terms(seed=3, **mutant_terms)
    with ready(comm, {name: METHODS[name]}, terms=terms) as methods:
        if mutant is not None:
            plant(comm, methods[name], mutant)
        yield methods, terms


def serial(comm, name, mutant):
    with planted(comm, name, mutant) as (methods, terms):
        contest = Contest(comm, methods, terms=terms)
        return [sample["wrong"] for step in range(STEPS) for sample in contest.round(step, gradient(comm, step))]


def overlapped(comm, name, mutant):
    with planted(comm, name, mutant) as (methods, terms):
        contest, wrong = Contest(comm, methods, terms=terms, iterations=ITERATIONS), []
        for step in range(ITERATIONS):
            with contest.overlapping(name, step):
                for future in [play(contest.turn, bucket) for bucket in gradient(comm, step)]:
                    future.wait()
            wrong.append(contest.wrong_overlapped(name))
        return wrong


@pytest.fixture(scope="module")
def sweep_of(comm):
    """Return what sweeps over one size as the bench does, and what is wrong."""
    asked = Config(
        methods=tuple(name for name in RIGHT if "sweep" in ways_of(name)),
        sizes=(40_020,),
        iterations=2,
        warmup=1,
        output="unused.jsonl",
        seed=3,
    )
    settled = settle(asked, comm)

    def sweep(comm, name, mutant):
        with planted(comm, name, mutant) as (methods, terms):
            config = dataclasses.replace(settled.config, methods=(name,), tie=terms.tie, momentum=terms.momentum)
            setting = dataclasses.replace(settled, config=config, methods=(name,))
            run = new_run(setting)
            measure(run, comm, setting=setting, methods=methods, terms=terms)
            return [run.end["wrong"]]

    return sweep


def draw_pictures(folder):
    """Write a few pictures of noise, of two classes."""
    noise = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 2)):
        for number in range(2 * count):
            path = folder / part / str(number % 2) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def train_by(comm, tmp_path_factory):
    """Return what trains for an epoch, and tells whether something was found wrong."""
    folder = comm.bcast(tmp_path_factory.mktemp("pictures"))
    if comm.rank == 0:
        draw_pictures(folder)
    comm.Barrier()
    recipe = Recipe(data=str(folder), model="tiny", image_size=32, batch_size=2, workers=0, epochs=1, bucket_mb=0.001,
                    warmup_epochs=0.0, seed=3, output=str(folder / "unused"))  # fmt: skip
    settled = train_setting.settle(recipe, comm)

    def train(comm, name, mutant):
        with planted(comm, name, mutant) as (methods, terms):
            recipe = dataclasses.replace(settled.config, method=name, tie=terms.tie, momentum=terms.momentum)
            setting = dataclasses.replace(settled, config=recipe)
            training = Training(
                comm, setting, method=methods[name], terms=terms, stop=lambda: False, log=lambda line: None
            )
            training.pieces.every = 1  # else a step in a hundred
            with contextlib.suppress(Agreed):
                training.run_epoch()
                return [0]
            return [1]

    return train


@pytest.fixture(scope="module")
def tried(sweep_of, train_by):
    return {"serial": serial, "overlapped": overlapped, "sweep": sweep_of, "train": train_by}


@pytest.mark.parametrize(("name", "way"), [(name, way) for name in RIGHT for way in WAYS if way in ways_of(name)])
def test_a_right_method_has_nothing_wrong(comm, tried, name, way):
    assert not any(tried[way](comm, name, None))


TRIED = [(mutant, way) for mutant in MUTANTS for way in WAYS if way in mutant.ways]


@pytest.mark.parametrize(("mutant", "way"), TRIED, ids=lambda of: getattr(of, "name", of))
def test_it_is_caught(comm, tried, mutant, way):
    if mutant.even and comm.size % 2:
        pytest.skip("no ties among an odd number of ranks")
    assert sum(tried[way](comm, mutant.method, mutant)) > 0
