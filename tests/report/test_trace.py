"""The time line: in the record, as Perfetto reads it, and what measuring costs."""

import json
from collections import defaultdict

import pytest
import trace_processor
from launch import run as launch
from made import kept, made_run

from mpisign.report import __main__ as report
from mpisign.report import notes, records, table, trace
from mpisign.report.samples import FACTS_OF_A_LINE
from mpisign.report.summary import summarize

METHODS = "none,mpi,gloo,vote-alltoall,vote-hierarchical"
TINY = ("-m", "mpisign.bench", "--model", "tiny", "--image-size", "32", "--bucket-mb", "0.02", "--methods", METHODS)


def made_trace(ranks=3):
    """A record of ranks whose time lines are known; spans that begin together with what encloses them among them."""
    run = made_run(ranks=ranks, iterations=2)
    for rank in range(ranks):
        at = 0.1 + rank / 1000
        for iteration in range(2):
            about = {"type": "span", "of": "exchange", "iteration": iteration, "method": "vote-alltoall", "rank": rank}
            inner = [["pack", at, 1e-9], ["all-to-all", at + 2e-9, 5e-4], ["pack", at + 0.001, 1e-3]]
            run.samples += [
                about | {"thread": "training", "spans": [["wait", at - 0.01, 0.01], ["vote-alltoall", at, 0.01]]},
                about | {"thread": "vote", "spans": [*inner, ["whole", at, 0.01]]},
                about | {"thread": "exchange", "bytes": 64, "spans": [["gloo", at, 0.0]]},
            ]
            at += 0.1
    run.end["clock_error_s"] = 0.0
    return run


def spans_of(run):
    """Return rank, row, name, begin and length in nanoseconds, method and iteration of each span."""
    return sorted(
        (line["rank"], line["thread"], name, round(1e9 * began), round(1e9 * seconds), line.get("method"),
         line["iteration"], line["of"])
        for line in run.spans
        for name, began, seconds in line["spans"]
    )  # fmt: skip


def exported(run, tmp_path):
    path = kept(run, tmp_path / "r.jsonl")
    assert report.main([str(path), "--trace", str(tmp_path / "trace.json")]) == 0
    return tmp_path / "trace.json"


def check_format(path):
    """Hold a file against the Trace Event Format, as far as it is used: strictly."""
    whole = json.loads(path.read_text())
    assert whole["displayTimeUnit"] == "ms"
    owner, named = {}, set()
    for event in whole["traceEvents"]:
        assert all(type(event[number]) is int and event[number] >= 0 for number in ("pid", "tid"))
        assert owner.setdefault(event["tid"], event["pid"]) == event["pid"]  # a thread is of one process
        if event["ph"] == "M":
            assert set(event) == {"ph", "name", "pid", "tid", "args"}
            named.add((event["pid"], event["tid"], event["name"]))
            continue
        assert set(event) == {"ph", "name", "cat", "pid", "tid", "ts", "dur", "args"}
        assert event["ph"] == "X"
        assert event["ts"] >= 0
        assert event["dur"] >= 0
    assert not owner.keys() & set(owner.values())  # else it would be taken for a process's main thread
    assert {(pid, tid, f"{what}_{how}") for tid, pid in owner.items() for what in ("process", "thread")
            for how in ("name", "sort_index")} == named  # fmt: skip
    return [event for event in whole["traceEvents"] if event["ph"] == "X"]


def check_nesting(events):
    """Hold the events of each row against each other: each is within another or apart from it."""
    open_until = defaultdict(list)
    for event in events:
        ends = open_until[event["pid"], event["tid"]]
        began, ended = round(1e3 * event["ts"]), round(1e3 * (event["ts"] + event["dur"]))
        while ends and ends[-1] <= began:
            ends.pop()
        assert not ends or ended <= ends[-1], event
        ends.append(ended)


@pytest.fixture(scope="module")
def perfetto():
    """One trace processor for all traces; it takes seconds to start."""
    if reason := trace_processor.missing():
        pytest.skip(reason)
    with trace_processor.started() as load:
        yield load


def in_trace_processor(query):
    """Return what Perfetto makes of a trace, as `spans_of` has it."""
    assert query("SELECT name FROM stats WHERE value > 0 AND severity IN ('error', 'data_loss')") == []
    (counted,) = query("SELECT COUNT(*) AS spans FROM slice")
    found = query("""
        SELECT pid, process.name AS process, thread.name AS thread, slice.name AS name, ts, dur,
               EXTRACT_ARG(slice.arg_set_id, 'args.method') AS method,
               EXTRACT_ARG(slice.arg_set_id, 'args.iteration') AS iteration, category, depth
        FROM slice JOIN thread_track ON track_id = thread_track.id JOIN thread USING (utid)
             JOIN process USING (upid)
    """)
    assert counted["spans"] == len(found)
    assert all(row["process"] == f"rank {row['pid']}" for row in found)
    keys = ("pid", "thread", "name", "ts", "dur", "method", "iteration", "category")
    return sorted(tuple(row[key] for key in keys) for row in found), {row["depth"] for row in found}


def test_a_trace_keeps_to_the_format(tmp_path):
    events = check_format(exported(made_trace(), tmp_path))
    assert len(events) == 3 * 2 * 7
    check_nesting(events)
    with pytest.raises(AssertionError):
        check_nesting([event | {"dur": 5e3} for event in events])


def test_perfetto_counts_the_spans_that_were_written(tmp_path, perfetto):
    run = made_trace()
    found, depths = in_trace_processor(perfetto(exported(run, tmp_path)))
    assert found == spans_of(run)
    assert depths == {0, 1}


@pytest.mark.parametrize("schedule", ["serial", "overlap"])
def test_a_run_is_traced_from_the_ranks_to_perfetto(tmp_path, schedule, request):
    ended = launch(2, *TINY, "--schedule", schedule, "--iterations", "2", "--warmup", "1", "--trace",
                   "--output", "r.jsonl", cwd=tmp_path)  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    run = records.read(tmp_path / "r.jsonl")
    assert run.end["clock_error_s"] == 0
    check_time_line(run)
    events = check_format(exported(run, tmp_path))
    check_nesting(events)
    assert len(events) == len(spans_of(run))
    if not trace_processor.missing():
        found, depths = in_trace_processor(request.getfixturevalue("perfetto")(tmp_path / "trace.json"))
        assert found == spans_of(run)
        assert depths == {0}


def check_time_line(run):
    """Hold the time line against the samples that it belongs to."""
    lines = defaultdict(dict)
    for line in run.spans:
        lines[line["of"], line["iteration"], line["rank"], line.get("method")][line["thread"]] = line["spans"]
    samples = [*run.compute, *run.exchange, *run.overlapped]
    assert len(lines) == len(samples)
    at_once = defaultdict(list)  # when each rank began and ended what none can end before all have begun
    for sample in samples:
        kind, iteration, method = sample["type"], sample["iteration"], sample.get("method")
        found = lines[kind, iteration, sample["rank"], method]
        seconds = defaultdict(float)
        for name, began, took in (span for thread in found.values() for span in thread):
            seconds[name] += took
            if name in ("mpi", "gloo"):
                at_once[kind, iteration, name].append((began, began + took))
        named = {name: took for name, took in sample.items() if name not in FACTS_OF_A_LINE or name == "wait"}
        if kind == "exchange":
            named[method] = sample["seconds"]
        elif kind == "overlapped" and run.kinds[method] != "vote":
            (whole,) = found["exchange"]
            named[whole[0]] = whole[2]
            assert whole[0] == method
        assert seconds == pytest.approx(named, abs=1e-7)
        if kind == "overlapped":
            (backward,) = (span for span in found["training"] if span[0] == "backward")
            for _, began, took in found.get("vote", []) + found.get("exchange", []):
                assert backward[1] <= began
                assert round(began + took, 9) <= round(backward[1] + backward[2], 9)
        assert ("vote" in found) == (run.kinds.get(method) == "vote")
    ranks = run.head["machine"]["ranks"]
    for spans in at_once.values():
        assert len(spans) == ranks
        assert max(began for began, _ in spans) <= min(ended for _, ended in spans)
    assert at_once


def test_a_sweep_is_traced(tmp_path):
    ended = launch(1, "-m", "mpisign.bench", "--sizes", "64:1K", "--methods", "mpi,vote-alltoall", "--iterations", "2",
                   "--trace", "--output", "r.jsonl", cwd=tmp_path)  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    events = check_format(exported(records.read(tmp_path / "r.jsonl"), tmp_path))
    assert {event["args"]["bytes"] for event in events} == {64, 256, 1024}
    assert {event["name"] for event in events} == {
        "wait", "mpi", "vote-alltoall", "pack", "all-to-all", "vote", "all-gather", "unpack"}  # fmt: skip


@pytest.mark.parametrize("schedule", ["serial", "overlap"])
def test_a_record_without_a_time_line_is_told_how_to_get_one(tmp_path, capsys, schedule):
    path = kept(made_run(schedule=schedule), tmp_path / "r.jsonl")
    assert report.main([str(path), "--trace", str(tmp_path / "trace.json")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "measure with mpisign.bench --trace" in line
    assert [file.name for file in tmp_path.iterdir()] == ["r.jsonl"]


def test_a_trace_that_cannot_be_written_is_told(tmp_path, capsys):
    path = kept(made_trace(), tmp_path / "r.jsonl")
    assert report.main([str(path), "--trace", str(path / "below" / "trace.json")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "Not a directory" in line or "File exists" in line


def test_the_table_of_a_traced_run_is_that_of_its_samples():
    assert table.render(summarize(made_trace(2)), "table") == table.render(summarize(made_run(iterations=2)), "table")
    with pytest.raises(ValueError, match="no time line"):
        trace.export(made_run(), None)


CLOCKS = """
import time
from mpi4py import MPI
from mpisign.ranks.clock import clock_offset
comm = MPI.COMM_WORLD
clock = lambda: time.perf_counter() + 100 * comm.rank
assert clock_offset(comm, [0, 0, 0], clock=clock) == (0, 0)
offset, error = clock_offset(comm, [0, 1, 1], clock=clock)
assert 0 < error < 50, error
# The third rank's clock is another one here, but it is taken for the second's, as they share a node.
assert abs(offset - (-100 if comm.rank else 0)) <= error, (comm.rank, offset, error)
"""


def test_clocks_of_other_nodes_are_asked():
    ended = launch(3, "-m", "mpi4py", "-c", CLOCKS)
    assert ended.returncode == 0, ended.stderr


# A clock that jumps where a barrier or a check is: whose time would be in a sample, would show.
JUMPING = """
import contextlib, sys, time
from mpi4py import MPI
from mpisign.bench import __main__ as bench
from mpisign.methods import means
from mpisign.ranks import agreement, launch, patience
from mpisign.voting import truth
JUMP, real, jumped = 1e6, time.perf_counter, [0.0]
time.perf_counter = lambda: real() + jumped[0]
def jumping(function):
    def late(*arguments, **named):
        jumped[0] += JUMP
        return function(*arguments, **named)
    return late
class Comm(MPI.Intracomm):
    Barrier = jumping(MPI.Intracomm.Barrier)
@contextlib.contextmanager
def session(program):
    yield Comm(MPI.COMM_WORLD)
launch.session = session
patience.quiet_barrier = jumping(patience.quiet_barrier)
for name in ("wrong_signs", "plain_vote"):
    setattr(truth, name, jumping(getattr(truth, name)))
agreement.differs = jumping(agreement.differs)
means.Mean.wrong = jumping(means.Mean.wrong)
sys.exit(bench.main(sys.argv[1:]))
"""


def test_barriers_and_checks_are_outside_the_samples(tmp_path):
    ended = launch(2, "-c", JUMPING, *TINY[2:], "--schedule", "overlap", "--iterations", "2", "--output", "r.jsonl",
                   cwd=tmp_path)  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    run = records.read(tmp_path / "r.jsonl")
    for line in [*run.compute, *run.exchange, *run.overlapped]:
        timed = {name: value for name, value in line.items() if name not in ("type", "rank", "method", "wait")}
        assert max(timed.values()) < 1e5, line
    assert all(line["wait"] > 1e5 for line in run.exchange)
    cost = run.end["measuring"]
    assert min(cost["barrier_s"], cost["check_s"], cost["check_pieces_s"]) > 1e5
    assert 0 < cost["span_s"] < 1e5
    assert 0 < cost["keep_pieces_s"] < 1e5
    # Four of the training, one for the barrier, and of vote-hierarchical, which has the most, 7 a bucket.
    buckets, rest = divmod(cost["spans_per_iteration"] - 5, 7)
    assert (buckets > 1, rest) == (True, 0)


def test_what_measuring_costs_is_told_below_the_table():
    run = made_run()
    assert not any(note.startswith("measuring") for note in notes.notes(summarize(run)))
    run.end["measuring"] = {"span_s": 6e-6, "spans_per_iteration": 20, "barrier_s": 2e-3, "check_s": 0.25}
    said = ("measuring: a span costs 6 us, 20 of them in an iteration are 1 % of it; outside the samples: a barrier, "
            "2 ms, and the check, 250 ms an exchange")  # fmt: skip
    assert said in notes.notes(summarize(run))
    run = made_run(schedule="overlap")
    run.end["measuring"] = {"span_s": 1.1e-6, "spans_per_iteration": 100, "barrier_s": 2e-3, "check_s": 0.25,
                            "check_pieces_s": 0.01, "keep_pieces_s": 1e-3}  # fmt: skip
    assert any("are 1 % of it" in note and note.endswith("keeping the pieces to check, 1 ms")
               for note in notes.notes(summarize(run)))  # fmt: skip
    run = made_run(sizes=(64, 1024))
    run.end["measuring"] = {"span_s": 1e-6, "spans_per_iteration": 2, "barrier_s": 2e-3, "check_s": 0.25}
    assert notes.share_of_spans(summarize(run)) == pytest.approx(1e-3, rel=0.01)
