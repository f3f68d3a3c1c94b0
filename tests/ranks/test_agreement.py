import subprocess

import pytest
from jobs import Job, start
from launch import environment, mpirun, our_lines, skip_if_quick

from mpisign.bench.config import Config
from mpisign.ranks import agreement, machine


def test_what_ranks_were_started_with_is_compared():
    ours = machine.started("p", Config(output="a", data="b", iterations=3), ("data", "output"))
    assert ours["--iterations"] == 3
    assert ours["the program"] == "p"
    assert ours["torch"]
    assert {"--output", "--data"}.isdisjoint(ours)
    assert machine.started("p", Config(output="c", data="d", iterations=3), ("data", "output")) == ours
    other = ours | {"--iterations": 4, "torch": "0"}
    said = agreement.unlike([ours, ours, other, {**other, "--tie": "random"}])
    assert "--iterations is 3 on rank 0 and 4 on rank 2" in said
    assert f"torch is {ours['torch']} on rank 0 and 0 on rank 2" in said
    assert "--tie is positive on rank 0 and random on rank 3" in said
    assert (
        agreement.unlike([{"a": 1}, {"b": 1}])
        == "a is 1 on rank 0 and None on rank 1; b is None on rank 0 and 1 on rank 1"
    )


BENCH, TRAIN = "mpisign.bench.__main__", "mpisign.train.__main__"
TINY = (
    "--model",
    "tiny",
    "--image-size",
    "32",
    "--iterations",
    "3",
    "--warmup",
    "0",
    "--methods",
    "gloo,vote-alltoall",
)
# A later option overrides an earlier one. What the last of two ranks has more, and what is said of it on rank 0.
UNLIKE = {
    "a usage error": (("--iteratoins", "3"), "unrecognized arguments: --iteratoins 3 (--help lists the options) (on"),
    "a bad value": (("--batch-size", "0"), "argument --batch-size: 0 is less than 1 (--help lists the options) (on"),
    "model": (("--model", "resnet18"), "--model is tiny on rank 0 and resnet18 on rank 1"),
    "methods in another order": (("--methods", "vote-alltoall,gloo"), "--methods is ('gloo', 'vote-alltoall') on"),
    "a sweep": (("--sizes", "1K:4K"), "--sizes is () on rank 0 and (1024, 4096) on rank 1"),
    "seed": (("--seed", "7"), "--seed is 0 on rank 0 and 7 on rank 1"),
    "schedule": (("--schedule", "overlap"), "--schedule is serial on rank 0 and overlap on rank 1"),
    "batch size": (("--batch-size", "2"), "--batch-size is None on rank 0 and 2 on rank 1"),
    "iterations": (("--iterations", "4"), "--iterations is 3 on rank 0 and 4 on rank 1"),
    "adversaries": (("--adversaries", "1"), "--adversaries is 0 on rank 0 and 1 on rank 1"),
    "format": (("--format", "json"), "--format is table on rank 0 and json on rank 1"),
    "data that one rank alone lacks": (("--data", "nowhere"), "data: nowhere is no folder of class folders"),
}
SOURCES = """
from mpisign.ranks import machine
if rank:
    machine.software = lambda: {"mpisign": "0.0.9"}
"""


@pytest.fixture(scope="module")
def unlike(tmp_path_factory):
    """Return how runs ended, by name, whose last rank was started otherwise."""
    skip_if_quick()
    top = tmp_path_factory.mktemp("unlike")
    jobs = {name: Job((*TINY, "--output", "r.jsonl"), top, own=((*TINY, "--output", "r.jsonl", *more), BENCH))
            for name, (more, _) in UNLIKE.items()}  # fmt: skip
    jobs["an unwritable output"] = Job((*TINY, "--output", "/dev/null/r"), top, own=((*TINY, "--output", "r"), BENCH))
    jobs["train"] = Job(TINY, top, own=(("--model", "tiny"), TRAIN))
    jobs["quiet"] = Job((*TINY, "--quiet", "--output", "q.jsonl"), top, own=((*TINY, "--output", "other"), BENCH))
    jobs["sources"] = Job(TINY, top, before=SOURCES)
    return dict(zip(jobs, start(2, BENCH, list(jobs.values())), strict=True))


SAID = {name: said for name, (_, said) in UNLIKE.items()} | {
    "an unwritable output": "output: /dev/null is not a folder (on rank 0)",
    "train": "the program is mpisign.bench on rank 0 and mpisign.train on rank 1",
    "sources": "and 0.0.9 on rank 1",
}


@pytest.mark.parametrize("name", SAID)
def test_ranks_that_were_started_otherwise_end_with_one_line_and_code_2(unlike, name):
    ended = unlike[name]
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("mpisign.bench: error: ")
    assert SAID[name] in line
    assert ended.stdout == ""


def test_quiet_leaves_the_results_alone(unlike):
    ended = unlike["quiet"]
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "Does it pay here?" in ended.stdout
    assert ended.files == ["q.jsonl"]


@pytest.mark.parametrize("program", ["bench", "train", "doctor"])
def test_a_rank_with_a_mistyped_option_does_not_keep_the_others_waiting(program):
    """For real: that rank has not started MPI when it sees its mistake."""
    mine = mpirun(1, "-m", f"mpisign.{program}", "--quiet")
    ended = together([*mine, ":", *mine[1:], "--quite"])
    assert ended.returncode == 2
    (line,) = our_lines(ended.stderr)
    assert "unrecognized arguments: --quite (--help lists the options) (on rank 1)" in line


@pytest.mark.parametrize("first", [True, False])
def test_who_waits_for_a_rank_that_never_comes_gives_up(first):
    """It was asked for help, which does not start MPI."""
    mine = mpirun(1, "-m", "mpisign.bench", "--model", "tiny")
    both = [*mine, "--help", ":", *mine[1:]] if first else [*mine, ":", *mine[1:], "--help"]
    ended = together(both, MPISIGN_START_SECONDS="2")
    assert ended.returncode == 2
    (line,) = our_lines(ended.stderr)
    assert "not all ranks came within 2 s" in line


def together(command, **extra):
    return subprocess.run(command, env=environment(**extra), capture_output=True, text=True, timeout=100, check=False)
