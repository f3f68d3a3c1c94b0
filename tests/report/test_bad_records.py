"""Records and logs that nobody would believe: each is refused in one line, or reported; nothing else."""

import copy
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made import kept, made_run

from mpisign.report import __main__ as report
from mpisign.report import records

DELETED = object()


def changed(line, path, value):
    """The line with another value at a path, or without it."""
    whole = copy.deepcopy(line)
    part = whole
    for name in path[:-1]:
        part = part[name]
    if value is DELETED:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    return whole


def lines_of(run=None):
    return [json.loads(line) for line in (run or made_run(iterations=2)).lines()]


def refused(capsys, path, *options):
    """The one line with which a file is refused."""
    assert report.main([str(path), *options]) == 2
    printed = capsys.readouterr()
    assert not printed.out
    (line,) = printed.err.splitlines()
    return line


FAULTS = [  # the line from the front or the end, the path in it, what is there instead, what is said
    (0, ("config",), DELETED, "line 1: has no config"),
    (0, ("config", "sizes"), "x", "line 1: config.sizes: expected array, got str"),
    (0, ("config", "sizes"), [-4], "line 1: config.sizes[0]: expected int >= 1"),
    (0, ("machine", "ranks"), 0, "line 1: machine.ranks: expected int >= 1"),
    (0, ("machine", "ranks"), 3, "line 1: traffic.model.none: expected sent and received bytes of 3 ranks"),
    (0, ("machine", "torch"), 2, "line 1: machine.torch: expected str | null, got int"),
    (0, ("kinds", "gloo"), "friend", "line 1: kinds[...]: invalid enum value 'friend'"),
    (0, ("methods",), ["none", "gloo"], "method: 'vote-alltoall' is not among the methods of the first line"),
    (0, ("methods",), ["none", "gloo", "vote-alltoall", "mpi"], "line 1: kinds: has no mpi"),
    (0, ("baseline",), "none", "line 1: baseline: none is a ceiling"),
    (0, ("traffic",), {}, "line 1: traffic: has no none of model"),
    (0, ("format",), 2, "no record that this reader knows: it has format 2, not 3"),
    (1, ("data",), -1, "line 2: data: expected float >= 0"),
    (1, ("iteration",), 7, "compute: has no line of iteration 0, rank 0"),
    (2, ("seconds",), -0.5, "line 3: seconds: expected float >= "),
    (2, ("seconds",), 0, "line 3: seconds: expected float >= "),
    (2, ("seconds",), "1", "line 3: seconds: expected float, got str"),
    (2, ("seconds",), DELETED, "line 3: has no seconds"),
    (2, ("seconds",), float("inf"), "line 3: JSON is malformed"),
    (2, ("wrong",), -1, "line 3: wrong: expected int >= 0"),
    (2, ("wrong",), 0.5, "line 3: wrong: expected int, got float"),
    (2, ("method",), "mpi", "line 3: method: 'mpi' is not among the methods"),
    (2, ("rank",), 2, "line 3: rank: 2, but there are 2 ranks"),
    (2, ("rank",), 1, "comes twice"),
    (2, ("bytes",), 64, "line 3: exchange by none of 64 bytes: the run has no such samples"),
    (2, ("pack",), {"a": 1}, "line 3: pack: expected float, got object"),
    (2, ("type",), "word", "line 3: type: expected one of compute, exchange, overlapped, span, got 'word'"),
    (-1, ("wall_s",), -1, "wall_s: expected float >= 0"),
    (-1, ("peak_bytes",), [1], "peak_bytes: expected those of 2 ranks"),
    (-1, ("type",), "run", "a second line of type run; a file has one record"),
]  # fmt: skip


def test_each_fault_of_a_record_is_one_line(tmp_path, capsys):
    lines = lines_of()
    for at, path, value, said in FAULTS:
        whole = list(lines)
        whole[at] = changed(lines[at], path, value)
        file = tmp_path / "r.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in whole))
        line = refused(capsys, file, "--html", str(tmp_path / "page.html"))
        assert line.startswith(f"mpisign.report: error: {file}"), line
        assert said in line, (said, line)
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]


def test_what_is_missing_or_too_much_of_a_record_is_named(tmp_path, capsys):
    file, text = tmp_path / "r.jsonl", [json.dumps(line) for line in lines_of()]
    for lines, said in (
        (text + text, f"line {len(text) + 1}: comes after the line of type end; a file has one record"),
        (text[:-1], "no record of a finished run of mpisign.bench"),
        ([*text[:-1], text[-1][:20]], f"line {len(text)}: "),
        (text[:2] + text[3:], "exchange by none: has no line of iteration 0, rank 0"),
        ([*text[:-1], text[2], text[-1]], f"line {len(text)}: exchange by none: iteration 0 of rank 0 comes twice"),
        ([text[0], text[-1]], "compute: has no lines"),
    ):
        file.write_text("\n".join(lines) + "\n")
        assert said in refused(capsys, file)


def test_what_a_terminal_would_obey_is_shown(tmp_path, capsys):
    run = made_run(device="\x1b[2Jgone\nnext")
    path = kept(run, tmp_path / "r.jsonl")
    assert records.read(path).head["machine"]["device"] == r"\x1b[2Jgone\nnext"
    assert report.main([str(path)]) == 0
    assert "\x1b" not in capsys.readouterr().out


SOURCES = [made_run(iterations=2), made_run(iterations=2, schedule="overlap"), made_run(sizes=(1024,), iterations=2)]
VALUES = st.sampled_from(
    [DELETED, None, True, -1, 0, 3, 2**70, -0.5, 1e308, "", "x", "\x1b[2J", [], [1], {}, {"a": [None]}, "=1", "|`<b>"]
)


def paths_of(value, path=()):
    """The paths of all that is in a value."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield (*path, name)
        yield from paths_of(part, (*path, name))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_a_record_holds_it_is_reported_or_refused(tmp_path, capsys, data):
    lines = lines_of(data.draw(st.sampled_from(SOURCES)))
    at = data.draw(st.sampled_from([0, 1, 2, len(lines) // 2, len(lines) - 1]))
    path = data.draw(st.sampled_from(list(paths_of(lines[at]))))
    lines[at] = changed(lines[at], path, data.draw(VALUES))
    file = tmp_path / "r.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    good = kept(made_run(iterations=2), tmp_path / "good.jsonl")
    for arguments in ([str(file)], ["compare", "--anyway", str(good), str(file)], [str(file), "--format", "markdown"]):
        code = report.main(arguments)
        printed = capsys.readouterr()
        if code == 2:
            assert not printed.out
            assert printed.err.count("\n") == 1
        else:
            assert code in (0, 3)
            assert "\x1b" not in printed.out


@pytest.mark.parametrize(("change", "said"), [
    ({"step": -1}, "line 3: step: expected int >= 1"),
    ({"step": 1, "lr": "x"}, "line 3: lr: expected float | null, got str"),
    ({"step": 1, "seconds": {"data": -1}}, "line 3: seconds"),
    ({"step": 2}, "line 4: step: 2 comes after step 2"),
])  # fmt: skip
def test_each_fault_of_a_log_is_one_line(tmp_path, capsys, change, said):
    path = tmp_path / "log.jsonl"
    given = [{"type": "train", "config": {}}, {"type": "start"}, {"type": "iteration"} | change,
             {"type": "iteration", "step": 2}]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in given))
    assert said in refused(capsys, path)
