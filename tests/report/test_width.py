"""What a terminal shows by default fits it."""

import pytest
from launch import ROOT
from made import made_run

from mpisign.report import __main__ as report
from mpisign.report import records, table, text
from mpisign.report.answer import answer_line
from mpisign.report.notes import notes
from mpisign.report.summary import summarize

LONGEST = {"gloo": "powersgd-mpi", "vote-alltoall": "vote-hierarchical-gloo"}  # no method has a longer name


def runs_of_the_bench():
    """Every published record of the bench."""
    for path in sorted((ROOT / "results" / "published").glob("*/*.jsonl")):
        with path.open() as lines:
            if '"type": "run"' in next(lines):
                yield path.stem, records.read(path)


def stretched(run, times=1.0, wrong=0):
    """The run with the longest names of methods, so many times as long, and wrong results of the vote."""
    for line in run.samples:
        for name, value in line.items():
            if isinstance(value, float):
                line[name] = value * times * (1 + 0.0314159 * line["iteration"])
        if "method" in line:
            line["wrong"] = wrong if line["method"] == "vote-alltoall" else 0
            line["method"] = LONGEST.get(line["method"], line["method"])
    for facts in (run.head["kinds"], *({id(one): one for one in run.head["traffic"].values()}.values())):
        facts |= {LONGEST[name]: facts.pop(name) for name in LONGEST}
    run.head |= {"methods": ["none", *LONGEST.values()], "baseline": LONGEST["gloo"]}
    return run


def made():
    """Records that would make a table wide, by what is special about them."""
    for kind, how in {"serial": {}, "overlap": {"schedule": "overlap"}, "sweep": {"sizes": (1023, 2**28)}}.items():
        for times in (1e-4, 1.0, 1e4):
            for wrong in (0, 204_456_256):
                yield f"{kind}, times {times:g}, wrong {wrong}", stretched(made_run(**how), times, wrong)
        alone = made_run(**how)
        alone.head["baseline"] = None
        yield f"{kind}, no baseline", alone
        yield f"{kind}, few samples", made_run(**how, iterations=1)


@pytest.mark.parametrize("runs", [runs_of_the_bench, made])
def test_every_default_table_fits_110_columns(runs):
    wide = {}
    for name, run in runs():
        summary = summarize(run)
        for baseline in (False, True):
            for line in table.render(summary, "table", baseline=baseline).splitlines():
                if len(line) > 110:
                    wide[name] = line
        if not summary.is_sweep:
            assert table.parts(summary, wide=True)[0].headers != table.parts(summary)[0].headers
    assert not wide


def test_lines_around_a_table_fit_a_narrow_terminal():
    summary = summarize(made_run(ranks_per_core=2.0))
    printed = table.render(summary, "table", width=text.NARROWEST)
    plain = " ".join(printed.split())
    laid = [line for part in table.parts(summary)
            for line in table.grid(part.cells, part.headers, style="simple").splitlines()]  # fmt: skip
    assert all(len(line) <= text.NARROWEST for line in printed.splitlines() if line not in laid)
    assert all(" ".join(note.split()) in plain for note in notes(summary))
    assert plain.startswith(table.title(summary.run))
    assert plain.endswith(answer_line(summary))


def test_what_takes_no_longer_than_sending_nothing_is_within_noise():
    run = made_run(iterations=20)
    for line in run.exchange:
        line["seconds"] *= 3e3 if line["method"] == "none" else 1  # 3 ms: the vote takes 2, gloo 8
    summary = summarize(run)
    assert summary.at_ceiling == ["vote-alltoall"]
    assert summary.answer["verdict"] == "faster"
    assert "what it costs is within noise of the ceiling" in answer_line(summary)
    assert any("within noise of the ceiling: vote-alltoall took no longer" in note for note in notes(summary))
    for line in run.exchange:
        line["seconds"] *= 10 if line["method"] == "none" else 1
    summary = summarize(run)
    assert summary.at_ceiling == ["gloo", "vote-alltoall"]
    assert {row["method"]: row["rival_verdict"] for row in summary.rows}["vote-alltoall"] == "within noise"
    assert "Can't tell" in answer_line(summary)


def test_where_files_are_written_no_table_is_printed(tmp_path, capsys):
    path = tmp_path / "r.jsonl"
    records.write(path, made_run().lines())
    page = tmp_path / "page.html"
    assert report.main([str(path), "--html", str(page)]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"mpisign.report: wrote {page}\n")
    for asked in (("--format", "lines"), ("--wide",), ("--per-iteration",)):
        assert report.main([str(path), "--html", str(page), *asked]) == 0
        assert "vote-alltoall" in capsys.readouterr().out
