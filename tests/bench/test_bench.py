"""The command itself, as a user starts it."""

import csv
import io
import json
import signal
import subprocess
import sys
import time

import pytest
from jobs import Job, start
from launch import environment, kill_a_rank, mpirun, our_lines, run, running

from mpisign.methods.method import MATRICES, NCCL
from mpisign.methods.table import METHODS
from mpisign.report import records, rows, samples, table
from mpisign.report.summary import summarize
from mpisign.train.recipe import TRAINABLE

BENCH = ("-m", "mpisign.bench")
TINY = (*BENCH, "--model", "tiny", "--image-size", "32", "--iterations", "6", "--warmup", "1")
ABLE = tuple(name for name, method in METHODS.items() if NCCL not in method.needs)
HERE = tuple(name for name in ABLE if not METHODS[name].unasked)
VOTES = {name for name, method in METHODS.items() if method.kind == "vote"}


TINY_RUN = TINY[2:]
CHOSEN = "none,mpi,vote-alltoall"
TRAITOR = ("--adversaries", "1", "--adversary", "delayed")
OVERLAP = ("--schedule", "overlap", "--iterations", "7", *TRAITOR, "--methods", ",".join(ABLE), "--per-iteration")
UNTIL = [(what, *end)
         for what in (("--schedule", "overlap"), ("--sizes", "1K:2K:2"))
         for end in (("0.9", "60", True), ("0.000001", "2", False))]  # fmt: skip
# The runs of so many ranks by name: those of a number of ranks share a start.
RUNS = {
    1: {"table": (*TINY_RUN, "--per-iteration"), "overlap": (*TINY_RUN, *OVERLAP)},
    2: {
        **{f"until {number}": (*TINY_RUN, *what, "--until", until, "--time-cap", cap, "--methods", "gloo,vote-alltoall")
           for number, (what, until, cap, _) in enumerate(UNTIL)},
        "sweep": ("--sizes", "4:1K:16", "--iterations", "3", "--format", "json"),
        "photos": (*TINY_RUN, "--data", "photos", "--methods", "gloo,vote-alltoall"),
    },
    3: {
        "table": (*TINY_RUN, "--per-iteration"),
        "traitors": (*TINY_RUN, "--methods", CHOSEN, "--tie", "random", "--adversaries", "1", "--adversary", "random",
                     "--format", "csv"),
    },
    4: {"overlap": (*TINY_RUN, *OVERLAP)},
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "photos"
    made = subprocess.run([sys.executable, "-m", "mpisign", "photos", folder], check=True,
                          capture_output=True, text=True)  # fmt: skip
    assert made.stdout.startswith("80 pictures in")
    return folder


@pytest.fixture(scope="module")
def ran(photos, tmp_path_factory):
    """Return what gives how a run of RUNS ended, and its record."""
    done = {}

    def of(ranks, name):
        if ranks not in done:
            folder = tmp_path_factory.mktemp(f"{ranks}-ranks")
            (folder / "photos").symlink_to(photos)
            jobs = [Job((*arguments, "--output", f"{name}.jsonl"), folder) for name, arguments in RUNS[ranks].items()]
            done[ranks] = folder, dict(zip(RUNS[ranks], start(ranks, "mpisign.bench.__main__", jobs), strict=True))
        folder, ended = done[ranks]
        assert ended[name].returncode == 0, ended[name].stderr
        return ended[name], records.read(folder / f"{name}.jsonl")

    return of


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_table(ran, ranks):
    ended, kept = ran(ranks, "table")
    assert ended.stdout.rstrip() == table.render(summarize(kept), "table", per_iteration=True)
    printed = " ".join(ended.stdout.split())
    assert "baseline: gloo" in printed
    assert "vote-alltoall-nccl: NCCL needs CUDA devices" in printed
    assert "replicas: bit-identical" in printed
    assert ("nothing to exchange" in printed) == (ranks == 1)
    network = kept.head["network"]
    assert network["pair"] == ([0, ranks - 1] if ranks > 1 else None)
    assert ranks == 1 or min(network["latency_s"], network["bandwidth"]) > 0
    assert "network: " in ended.stdout
    found = {row["method"]: row for row in summarize(kept).rows}
    assert tuple(found) == HERE
    assert all(row["wrong"] == 0 for name, row in found.items() if name != "none")
    assert len(kept.exchange) == 6 * ranks * len(HERE)
    assert len(kept.compute) == 6 * ranks
    for line in kept.compute + kept.exchange:
        assert all(value >= 0 for value in line.values() if isinstance(value, float))
    for line in kept.exchange:
        spans = [value for name, value in line.items() if isinstance(value, float) and name not in ("seconds", "wait")]
        assert sum(spans) <= line["seconds"]
        if line["method"] in VOTES:
            assert {"wait", "pack", "unpack"} <= set(line)
    assert {line["method"]: set(line) for line in kept.exchange}["vote-alltoall"] >= {
        "all-to-all",
        "vote",
        "all-gather",
    }


def test_traitors_a_coin_and_a_choice_of_methods(ran):
    ended, _ = ran(3, "traitors")
    found = list(csv.DictReader(io.StringIO(ended.stdout)))
    assert [row["method"] for row in found] == CHOSEN.split(",")
    assert tuple(found[0]) == rows.KEYS
    assert {row["baseline"] for row in found} == {"mpi"}


@pytest.mark.parametrize("ranks", [1, 4])
def test_the_overlapped_schedule(ran, ranks):
    ended, kept = ran(ranks, "overlap")
    assert ended.stdout.rstrip() == table.render(summarize(kept), "table", per_iteration=True)
    assert "exposed" in ended.stdout
    assert "replicas: bit-identical" in ended.stdout
    assert all(row["wrong"] == 0 for row in summarize(kept).rows if row["method"] != "none")
    assert sum(bucket["bytes"] for bucket in kept.end["buckets"]) == 4 * kept.head["coordinates"]
    assert all(0 < bucket["ready"] <= 1 for bucket in kept.end["buckets"])
    assert kept.head["config"]["bucket_mb"] is None
    assert len(kept.overlapped) == 8 * ranks * len(ABLE)  # in blocks of 2
    for line in kept.overlapped:
        assert sum(line[name] for name in samples.COMPUTE_SPANS) <= line["seconds"]
        assert ("pack" in line) == (line["method"] in VOTES)


@pytest.mark.parametrize("number", range(len(UNTIL)), ids=[" ".join((*what, until)) for what, until, _, _ in UNTIL])
def test_it_goes_on_until_the_intervals_are_narrow_or_time_is_up(ran, number):
    _, until, _, reached = UNTIL[number]
    ended, kept = ran(2, f"until {number}")
    sizes = kept.head["config"]["sizes"] or [None]
    assert (max(rows.widest(kept, size) for size in sizes) <= float(until)) == reached
    fewest, _ = samples.iterations(kept)
    assert fewest >= 6
    assert ("WARNING: asked to go on" in ended.stdout) != reached


def test_a_sweep_over_sizes(ran):
    ended, _ = ran(2, "sweep")
    found = json.loads(ended.stdout)["rows"]
    assert [row["bytes"] for row in found] == [
        size for size in (4, 64, 1024) for name in HERE if MATRICES not in METHODS[name].needs
    ]
    assert {row["wrong"] for row in found} == {0, None}


def test_real_pictures(ran):
    ended, kept = ran(2, "photos")
    assert kept.head["config"]["data"] == "photos"
    assert "photos pictures of 32 x 32" in ended.stdout
    assert all(line["data"] > 0 for line in kept.compute)


def test_real_pictures_in_two_parts(tmp_path):
    made = subprocess.run([sys.executable, "-m", "mpisign", "photos", tmp_path, "--validate", "1/5"],
                          check=True, capture_output=True, text=True)  # fmt: skip
    assert made.stdout.startswith("80 pictures in")
    pictures = {
        part: {p.relative_to(tmp_path / part) for p in tmp_path.glob(f"{part}/*/*.jpg")} for part in ("train", "val")
    }
    assert not pictures["train"] & pictures["val"]
    for label in ("china", "flower"):
        assert [sum(p.parent.name == label for p in pictures[part]) for part in ("train", "val")] == [32, 8]


FAULTY = [
    (["--model", "resnet5000"], "model: unknown name 'resnet5000'"),
    (["--methods", "vote-ring"], "unknown name 'vote-ring', choose from none, mpi"),
    (["--methods", "nccl"], "methods: nccl cannot run: NCCL needs CUDA devices"),
    (["--tie", "heads"], "invalid choice: 'heads'"),
    (["--sizes", "1K"], "no range of sizes"),
    (["--data", "empty"], "data: empty is no folder of class folders with pictures"),
    (["--data", "nowhere"], "data: nowhere is no folder"),
    (["--output", "/dev/null/r.jsonl"], "output: /dev/null is not a folder"),
    (["--output", "empty"], "output: empty is a folder"),
    (["--output", "/dev/null"], "output: /dev/null is no ordinary file"),
    (["--adversaries", "3"], "adversaries: 3 of 2 ranks"),
    (["--iterations", "0"], "0 is less than 1"),
    (["--batch-size", "x"], "'x' is not a whole number"),
    (["--momentum", "1"], "1 is not in [0, 1)"),
    (["--bucket-mb", "0"], "0 is no finite number above 0"),
    (["--model", "resnet18", "--image-size", "32"], "image_size: resnet18 takes no batch of 1"),
    (["--sizes", "1K:4K", "--methods", "powersgd-2"], "methods: powersgd-2 cannot run: it compresses matrices"),
    (["--schedule", "never"], "invalid choice: 'never'"),
    (["--sizes", "1K:4K", "--schedule", "overlap"], "schedule: a sweep over sizes has no backward"),
    (["--nonsense"], "unrecognized arguments: --nonsense"),
]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """Return how a run ended for each of FAULTY."""
    top, jobs = tmp_path_factory.mktemp("faulty"), []
    for number, (arguments, _) in enumerate(FAULTY):
        folder = top / str(number)
        (folder / "empty").mkdir(parents=True)
        output = [] if "--output" in arguments else ["--output", "r.jsonl"]
        model = [] if "--model" in arguments else ["--model", "tiny", "--image-size", "32"]
        jobs.append(Job((*model, *arguments, *output), folder))
    return start(2, "mpisign.bench.__main__", jobs)


@pytest.mark.parametrize("number", range(len(FAULTY)), ids=["-".join(arguments) for arguments, _ in FAULTY])
def test_bad_input_gets_one_line_and_code_2(faulty, number):
    ended = faulty[number]
    assert ended.returncode == 2
    lines = our_lines(ended.stderr)
    assert len(lines) == 1, ended.stderr
    assert FAULTY[number][1] in lines[0]
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    assert ended.files == ["empty"]


@pytest.mark.parametrize("arguments", [["--adversaries", "3"], ["--nonsense"]], ids=["settled", "parsed"])
def test_bad_input_ends_a_job_with_code_2(tmp_path, arguments):
    ended = run(2, *BENCH, "--model", "tiny", "--image-size", "32", *arguments, "--output", "r.jsonl", cwd=tmp_path)
    assert ended.returncode == 2
    assert len(our_lines(ended.stderr)) == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout.strip() == "" or "BAD TERMINATION" in ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_ranks_started_singly_are_told_how_to_start(tmp_path):
    ended = subprocess.run([sys.executable, *TINY], cwd=tmp_path, env=environment(SLURM_NTASKS="4", SLURM_PROCID="0"),
                           capture_output=True, text=True, timeout=120, check=False)  # fmt: skip
    assert ended.returncode == 2
    (line,) = our_lines(ended.stderr)
    assert "was to start 4 ranks, but MPI sees 1" in line
    assert "srun --mpi=" in line
    assert list(tmp_path.iterdir()) == []


BROKEN = """
import sys, time
from mpi4py import MPI
from mpisign.bench import __main__ as bench
from mpisign.voting import truth
rank = MPI.COMM_WORLD.rank
def broken(*arguments):
    {what}
truth.wrong_signs = broken
sys.exit(bench.main(sys.argv[1:]))
"""


def test_a_rank_that_raises_ends_the_job_with_its_traceback(tmp_path):
    program = BROKEN.format(what="1 / 0 if rank == 1 else None; return 0")
    ended = run(3, "-c", program, *TINY[2:], "--output", "r.jsonl", cwd=tmp_path)
    assert ended.returncode not in (0, 2)
    assert "rank 1 failed, the job ends" in ended.stderr
    assert "ZeroDivisionError" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_result_is_shown_and_the_exit_code_is_1(tmp_path):
    program = BROKEN.format(what="return int(rank == 1)")
    ended = run(2, "-c", program, *TINY[2:], "--methods", "gloo,vote-server", "--output", "r.jsonl", cwd=tmp_path)
    assert ended.returncode == 1
    assert "wrong coordinates" in ended.stderr
    assert {row["method"]: row["wrong"] for row in summarize(records.read(tmp_path / "r.jsonl")).rows}[
        "vote-server"
    ] == 1


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_rank_and_ctrl_c_end_the_job(tmp_path, how):
    record = str(tmp_path / "r.jsonl")
    command = mpirun(3, *TINY, "--iterations", "100000", "--output", record)
    with running(command, tmp_path) as job:
        while "methods" not in job.stderr.readline():  # it says so when it starts
            assert job.poll() is None
        time.sleep(8)
        if how == signal.SIGKILL:
            kill_a_rank(record, "mpirun")
        else:
            job.send_signal(how)
        job.communicate(timeout=60)
    assert job.returncode != 0
    assert list(tmp_path.iterdir()) == []


HEAVY = ("torch", "torchvision", "mpi4py", "mpi4py.MPI", "sklearn")


@pytest.mark.parametrize("command", ["bench", "train"])
def test_help_needs_neither_mpi_nor_torch(command):
    program = f"""
import sys
try:
    from mpisign.{command} import __main__ as command
    command.main(["--help"])
except SystemExit as ended:
    assert not ended.code
    loaded = set({HEAVY}) & set(sys.modules)
    assert not loaded, loaded
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment(), check=False
    )
    assert ended.returncode == 0, ended.stderr
    named = METHODS if command == "bench" else TRAINABLE
    assert all(name in "".join(ended.stdout.split()) for name in named)  # as lines are broken at hyphens


def test_report_needs_neither_mpi_nor_torch():
    program = "import sys, mpisign.report.__main__; assert not {'torch', 'mpi4py', 'numba'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, env=environment())
