import importlib.util
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from itertools import pairwise

import numpy as np
import pytest
from launch import environment
from made import kept, made_run, newest, redrawn, report_alone

from mpisign.report import __main__ as report
from mpisign.report import charts, compare, looks, records, table, text
from mpisign.report.formats import FORMATS
from mpisign.report.notes import CROWDED
from mpisign.report.summary import summarize


def refused(capsys, *arguments):
    """The one line with which a command line is refused."""
    try:
        code = report.main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    assert code == 2
    assert not said.out
    return said.err.splitlines()[-1]


def test_the_table_alone_loads_nothing_slow(tmp_path):
    path = kept(made_run(), tmp_path / "r.jsonl")
    done = report_alone(path)
    assert "Does it pay here?" in done.stdout
    assert done.stdout.splitlines()[-1].split() == ["code", "0"]


@pytest.mark.parametrize("arguments", [("--help",), ("compare", "--help")], ids=" ".join)
def test_help_loads_nothing_slow(arguments):
    program = """
import sys
from mpisign.report import __main__ as report
try:
    report.main(sys.argv[1:])
finally:
    loaded = {"numpy", "torch", "numba", "mpi4py", "tabulate", "matplotlib", "msgspec"} & set(sys.modules)
    assert not loaded, loaded
"""
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment(), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("usage: mpisign.report")


def test_report_redraws(tmp_path, capsys):
    path = kept(made_run(), tmp_path / "r.jsonl")
    for form in FORMATS:
        assert report.main([str(path), "--format", form]) == 0
        printed = table.render(summarize(made_run()), form, width=text.terminal_width())
        assert capsys.readouterr().out.strip() == printed


def verdicts(printed):
    """The last column of a comparison, by method."""
    rows = (line.split() for line in printed.splitlines()[4:] if line.startswith(("gloo", "vote", "none")))
    return {row[0]: row[-1] for row in rows}


@pytest.mark.parametrize("schedule", ["serial", "overlap"])
@pytest.mark.parametrize(
    ("slow", "code", "said"), [(1.0, 0, "indistinguishable"), (3.0, 3, "slower"), (0.2, 0, "faster")]
)
def test_compare_tells_what_became_slower_and_its_exit_code_says_so(tmp_path, capsys, schedule, slow, code, said):
    old, new = (kept(made_run(slow=by, schedule=schedule), tmp_path / str(by)) for by in (1, slow))
    least = ("--at-least", "5%")
    assert report.main(["compare", str(old), str(new), *least]) == code
    printed = capsys.readouterr().out
    assert verdicts(printed) == {"vote-alltoall": said, "gloo": "indistinguishable"}
    assert report.main(["compare", str(old), "--with", str(new), *least]) == code
    assert capsys.readouterr().out == printed
    assert "These two starts only" in printed
    assert "A difference counts from 5 % on." in printed


def test_between_two_records_a_small_difference_does_not_count(tmp_path, capsys):
    old, new = (kept(made_run(slow=by), tmp_path / str(by)) for by in (1.0, 1.08))
    assert report.main(["compare", str(old), str(new)]) == 0
    assert "A difference counts from 10 % on." in capsys.readouterr().out
    assert report.main(["compare", str(old), str(new), "--at-least", "7"]) == 3
    assert verdicts(capsys.readouterr().out)["vote-alltoall"] == "slower"
    for percent in ("-1%", "ten", "inf"):
        assert "--at-least" in refused(capsys, "compare", old, new, f"--at-least={percent}")


def test_compare_shows_the_medians_of_whole_overlapped_iterations(tmp_path, capsys):
    old, new = (kept(made_run(slow=by, schedule="overlap"), tmp_path / str(by)) for by in (1.0, 3.0))
    report.main(["compare", str(old), str(new), "--format", "markdown"])
    row = next(line for line in capsys.readouterr().out.splitlines() if "vote-alltoall" in line)
    assert [cell.strip() for cell in row.split("|")][2:4] == ["11.04", "13.05"]


def starts_of(factors):
    """Starts of which each start has a factor of its own on all times of a vote, and a little one on gloo's."""
    runs = []
    for number, factor in enumerate(factors):
        run = made_run(slow=factor)
        gloo = [line for line in run.exchange if line["method"] == "gloo"]
        for line in gloo:
            line["seconds"] *= 1 + 0.001 * (number * 7 % 5)
        runs.append(compare.started(run))
    return runs


NOISE = (1.0, 1.11, 0.95, 1.04, 0.98)


def test_starts_that_differ_among_themselves_are_no_difference_between_the_sides():
    pair = compare.compare(*([run] for run in starts_of((0.95, 1.11))))
    assert [cells[-1] for cells in pair.cells] == ["indistinguishable", "slower"]  # within them all is narrow
    for swapped in (starts_of(NOISE), starts_of(NOISE[::-1])):
        part = compare.compare(starts_of(NOISE), swapped)
        assert [cells[-1] for cells in part.cells] == ["indistinguishable"] * 2
        assert part.caption.startswith("5 old starts and 5 new ones, tested by permutation of the starts.")
        assert "(old, new, old, new)" in part.caption
    slower = compare.compare(starts_of(NOISE), starts_of([1.2 * factor for factor in NOISE]))
    assert [cells[-1] for cells in slower.cells] == ["indistinguishable", "slower"]
    beyond = compare.compare(starts_of(NOISE), starts_of([1.2 * factor for factor in NOISE]), at_least=0.5)
    assert beyond.cells[1][-1] == "indistinguishable"
    assert "counts from 50 % on" in beyond.caption


@pytest.mark.parametrize("starts", [4, 5, 10])
def test_comparisons_of_starts_that_are_alike_seldom_find_anything(starts):
    rng, cells = np.random.default_rng(starts), [(f"vote {i}", None) for i in range(8)]
    false = found = 0
    for _ in range(200):
        medians = rng.lognormal(sigma=0.05, size=(2 * starts, 1)) * rng.lognormal(sigma=0.05, size=(2 * starts, 8))
        medians[starts:, 0] *= 1.5
        both = []
        for side in (medians[:starts], medians[starts:]):
            values = [dict(zip(cells, start[:, None], strict=True)) for start in side]
            both.append(compare.Side([compare.Start(samples, frozenset(), overlaps=False) for samples in values]))
        apart = [ratio.low > 1 or ratio.high < 1 for ratio in compare.between_starts(*both, cells)]
        found += apart[0]
        false += any(apart[1:])
    assert false <= 0.05 * 200 + 2 * (0.05 * 0.95 * 200) ** 0.5
    assert found > 0.9 * 200


def test_a_wrong_result_is_no_improvement(tmp_path, capsys):
    old, new = made_run(), made_run(slow=0.2)
    next(line for line in new.exchange if line["method"] == "vote-alltoall")["wrong"] = 1
    paths = kept(old, tmp_path / "old"), kept(new, tmp_path / "new")
    assert report.main(["compare", *map(str, paths)]) == 3
    assert verdicts(capsys.readouterr().out)["vote-alltoall"] == "wrong"
    assert report.main(["compare", *map(str, paths[::-1])]) == 0
    assert "old is wrong" in capsys.readouterr().out
    few = [kept(made_run(slow=by, iterations=3), tmp_path / f"few {by}") for by in (1, 9)]
    assert report.main(["compare", *map(str, few)]) == 0
    assert verdicts(capsys.readouterr().out)["vote-alltoall"] == "samples"  # too few


def test_what_not_all_records_have_is_named_and_counts_if_it_is_wrong(tmp_path, capsys):
    old, new = made_run(), made_run()
    old.head["methods"] = ["none", "gloo"]  # the old run had no vote
    old.samples = [line for line in old.samples if line.get("method") != "vote-alltoall"]
    paths = kept(old, tmp_path / "old"), kept(new, tmp_path / "new")
    assert report.main(["compare", *map(str, paths)]) == 0
    assert "not compared, for not all records have them: vote-alltoall" in capsys.readouterr().out
    next(line for line in new.exchange if line["method"] == "vote-alltoall")["wrong"] = 1
    kept(new, paths[1])
    assert report.main(["compare", *map(str, paths)]) == 3


def test_a_run_whose_replicas_differ_is_wrong_as_a_whole(tmp_path, capsys):
    paths = kept(made_run(), tmp_path / "right"), kept(made_run(), tmp_path / "apart")
    run = records.read(paths[1])
    run.end["replicas_identical"] = False
    kept(run, paths[1])
    assert report.main(["compare", *map(str, paths)]) == 3
    printed = capsys.readouterr().out
    assert verdicts(printed) == {"vote-alltoall": "wrong", "gloo": "wrong"}
    assert (
        printed.splitlines()[-1] == f"WARNING: the replicas DIFFER between ranks in {paths[1]}, so all of it is wrong"
    )
    assert report.main(["compare", *map(str, paths[::-1])]) == 0
    assert "old is wrong" in capsys.readouterr().out


def test_what_never_varies_is_not_slower():
    """Two cells each fall apart into halves, by other starts, so no statistic is rare; the last is always the same."""
    old_are_quick, others_are_quick = (0, 1, 2, 3), (0, 1, 2, 4)
    starts = [
        compare.Start({("a", None): np.array([1.0 + (start not in old_are_quick)]),
                       ("b", None): np.array([1.0 + (start not in others_are_quick)]),
                       ("c", None): np.array([1.0])}, frozenset(), overlaps=False)
        for start in range(8)
    ]  # fmt: skip
    part = compare.compare(starts[:4], starts[4:])
    assert any("nan" in cells[-2] for cells in part.cells)
    assert [cells[-1] for cells in part.cells] == ["indistinguishable"] * 3


def test_runs_on_different_machines_are_compared_only_when_told(tmp_path, capsys):
    old, new = kept(made_run(), tmp_path / "old"), kept(made_run(ranks=3), tmp_path / "new")
    assert "ranks: 2 and 3" in refused(capsys, "compare", old, new)
    assert "ranks: 2 and 3" in refused(capsys, "compare", old, new, "--with", old, old)
    assert report.main(["compare", "--anyway", str(old), str(new)]) == 0
    assert "WARNING: the runs differ in ranks: 2 and 3" in capsys.readouterr().out


def test_compare_wants_two_records_with_something_in_common(tmp_path, capsys):
    old, new = kept(made_run(), tmp_path / "old"), made_run()
    new.head |= {"methods": ["none"], "baseline": None}
    new.samples = [line for line in new.samples if line.get("method", "none") == "none"]
    assert "required: OLD" in refused(capsys, "compare")
    for given in ([old], [old, old, old]):
        assert "give two records, OLD and NEW, or OLD... --with NEW..." in refused(capsys, "compare", *given)
    assert "no method in common" in refused(capsys, "compare", old, kept(new, tmp_path / "new"))
    (tmp_path / "broken").write_text("nothing")
    assert "broken: no record" in refused(capsys, "compare", old, tmp_path / "broken")


def test_a_record_may_be_called_compare(tmp_path, capsys, monkeypatch):
    kept(made_run(), tmp_path / "compare")
    monkeypatch.chdir(tmp_path)
    assert report.main(["./compare"]) == 0
    assert "vote-alltoall" in capsys.readouterr().out


def test_any_method_but_none_can_be_the_baseline(tmp_path, capsys):
    path = kept(made_run(), tmp_path / "r")
    assert report.main([str(path), "--baseline", "vote-alltoall", "--format", "json"]) == 0
    found = {row["method"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert found["gloo"]["speedup"] == pytest.approx(12 / 18)
    assert found["gloo"]["verdict"] == "slower"
    assert found["vote-alltoall"]["verdict"] == "baseline"
    assert report.main([str(path), "--baseline", "vote-alltoall", "--format", "markdown"]) == 0
    assert "| verdict against vote-alltoall" in capsys.readouterr().out
    for name in ("none", "mpi"):
        assert f"has no {name}, only gloo, vote-alltoall" in refused(capsys, path, "--baseline", name)


def test_figures_are_written_the_same_each_time(tmp_path, capsys):
    serial, sweep = kept(made_run(), tmp_path / "a.jsonl"), kept(made_run(sizes=(1024, 4096)), tmp_path / "b.jsonl")
    for folder in ("one", "two"):
        for path in (serial, sweep):
            assert report.main([str(path), "--figures", str(tmp_path / folder)]) == 0
    names = {f"{name}{suffix}" for name in ("a-breakdown", "a-distribution", "b-sizes") for suffix in (".png", ".svg")}
    assert {path.name for path in (tmp_path / "one").iterdir()} == names
    for name in names:
        content = (tmp_path / "one" / name).read_bytes()
        assert content == (tmp_path / "two" / name).read_bytes()
        if name.endswith(".svg"):
            ET.fromstring(content)  # noqa: S314
            assert b"<dc:date>" not in content
        else:
            assert content.startswith(b"\x89PNG")


def test_records_of_other_rank_counts_are_drawn_together(tmp_path, capsys):
    runs = {ranks: made_run(ranks=ranks, bound=ranks == 2, torch_threads=4 // ranks) for ranks in (2, 4)}
    paths = [kept(run, tmp_path / f"{ranks}.jsonl") for ranks, run in runs.items()]
    out = tmp_path / "out"
    assert report.main([*map(str, paths), "--figures", str(out), "--html", str(out / "page.html")]) == 0
    assert {path.stem for path in out.glob("*.svg")} == {
        "2-breakdown", "2-distribution", "4-breakdown", "4-distribution", "scaling"}  # fmt: skip
    assert (out / "page.html").read_text().count("<svg") == 5


def test_what_cannot_be_drawn_is_refused_before_anything_is_written(tmp_path, capsys, monkeypatch):
    one, other = kept(made_run(), tmp_path / "a.jsonl"), kept(redrawn(made_run(), model="big"), tmp_path / "b.jsonl")
    again, namesake = kept(made_run(), tmp_path / "c.jsonl"), kept(made_run(ranks=3), tmp_path / "x" / "a.jsonl")
    out = ("--figures", tmp_path / "out")
    assert refused(capsys, one, other, *out).endswith("cannot be drawn together: they differ in model: tiny and big")
    assert refused(capsys, one, again, *out).endswith("cannot be drawn together: more than one of them has 2 ranks")
    assert "two of the records are called a" in refused(capsys, one, namesake, *out)
    assert "--figures" in refused(capsys, one, "--figures", one)
    assert "--html" in refused(capsys, one, "--html", tmp_path)
    assert "is one of the records" in refused(capsys, one, "--html", one)
    assert "No such file" in refused(capsys, tmp_path / "none.jsonl", *out)
    assert "takes one record" in refused(capsys, one, other, "--format", "csv")
    for package in ("matplotlib", "jinja2"):
        there = importlib.util.find_spec
        with monkeypatch.context() as patch:
            patch.setattr(importlib.util, "find_spec", lambda name: None if name == package else there(name))  # noqa: B023
            assert f"need {package}: pip install 'mpisign[plots]'" in refused(capsys, one, *out)
    assert not (tmp_path / "out").exists()


def bars(axes):
    """Each row's bars, from left to right: (left, width) in ms."""
    found = {}
    for bar in axes.patches:
        if bar.get_width() > 0:
            found.setdefault(round(bar.get_y() + bar.get_height() / 2), []).append((bar.get_x(), bar.get_width()))
    return {row: sorted(parts) for row, parts in found.items()}


@pytest.mark.parametrize("schedule", ["serial", "overlap"])
def test_charts_mark_the_methods_that_were_wrong(schedule):
    run, sweep = made_run(schedule=schedule), made_run(sizes=(1024, 4096))
    for line in (*run.exchange, *sweep.exchange[-1:]):
        line["wrong"] = int(line["method"] == "vote-alltoall")
    names = ["none", "gloo", "vote-alltoall (wrong)"]
    figure = charts.sizes(summarize(sweep))
    assert figure.axes[0].get_legend_handles_labels()[1] == names[1:]  # a ceiling is off the axis
    for draw in charts.drawings(summarize(run)).values():
        assert [label.get_text() for label in draw().axes[0].get_yticklabels()] == names
    figure = charts.scaling([summarize(run), summarize(made_run(ranks=4, schedule=schedule))])
    assert figure.axes[0].get_legend_handles_labels()[1] == names


@pytest.mark.parametrize("run", ["resnet50-8-ranks", "serial", "overlap"])
def test_stacked_bars_have_no_gaps_and_are_as_long_as_the_table_says(run):
    summary = summarize(made_run(schedule=run) if run in ("serial", "overlap") else records.read(newest(run)))
    whole, alone = charts.stacked(summary, summary.breakdown).axes
    for axes, key in ((whole, "iteration_s"), (alone, "comm_s")):
        drawn = bars(axes)
        for place, row in enumerate(summary.rows):
            parts = drawn[place]
            assert parts[-1][0] + parts[-1][1] == pytest.approx(1e3 * row[key])
            for (left, width), (after, _) in pairwise(parts):
                assert left + width == pytest.approx(after)


def test_overlapped_bars_tell_what_is_exposed():
    summary = summarize(made_run(schedule="overlap"))
    whole = charts.stacked(summary, summary.breakdown).axes[0]
    (rest, exposed) = bars(whole)[2]
    assert rest[1] == pytest.approx(10, rel=0.01)
    assert exposed[1] == pytest.approx(1, rel=0.01)
    assert len(bars(whole)[0]) == 1


@pytest.mark.parametrize("schedule", ["serial", "overlap"])
def test_every_sample_is_in_the_distribution(schedule):
    run = made_run(schedule=schedule, iterations=20)
    for line in run.samples:
        if line["iteration"] == 3 and line.get("method") == "gloo":
            line["seconds"] = 99.0
    summary = summarize(run)
    measured = summary.measured[None]
    for axes, samples in zip(charts.distribution(summary).axes, (measured.iteration, measured.comm), strict=True):
        shown = {place: [] for place in range(3)}
        for line in axes.lines:
            if line.get_marker() == "o" and line.get_linestyle() == "None" and len(line.get_xdata()):
                shown[round(np.mean(line.get_ydata()) + 0.1)] += list(line.get_xdata())
        for place, method in enumerate(run.head["methods"]):
            if place or axes.get_xscale() == "linear":  # `none` exchanges nothing
                near = [1e3 * value for value in samples[method] if value < 50]
                assert sorted(shown[place]) == pytest.approx(sorted(near))
        assert len(shown[1]) == 19
        assert any(text.get_text().startswith("99") for text in axes.texts)


@pytest.mark.parametrize("methods", [["none"], ["gloo"], ["none", "vote-alltoall"]])
@pytest.mark.parametrize("schedule", ["serial", "overlap"])
@pytest.mark.parametrize("iterations", [1, 8])
def test_few_methods_and_iterations_are_drawn_too(methods, schedule, iterations):
    run = made_run(schedule=schedule, iterations=iterations)
    run.head |= {"methods": methods, "baseline": "gloo" if "gloo" in methods else None}
    run.samples = [line for line in run.samples if line.get("method", methods[0]) in methods]
    for draw in charts.drawings(summarize(run)).values():
        assert [label.get_text() for label in draw().axes[0].get_yticklabels()] == methods


def test_scaling_and_sizes_show_the_medians_and_their_intervals():
    figure = charts.scaling([summarize(made_run(ranks=ranks, slow=ranks)) for ranks in (8, 2)])
    assert [axes.get_title() for axes in figure.axes] == ["Iteration", "The exchange alone"]
    assert "2, 8 ranks" in figure.get_suptitle()
    curve = next(line for line in figure.axes[1].containers if line.get_label() == "vote-alltoall")
    assert list(curve[0].get_ydata()) == pytest.approx([4, 16], rel=0.01)
    sweep = made_run(sizes=(1024, 4096), ranks_per_core=2.0)
    summary = summarize(sweep)
    figure = charts.sizes(summary)
    gloo = next(line for line in figure.axes[0].containers if line.get_label() == "gloo")
    row = next(row for row in summary.rows if row["method"] == "gloo")
    low, high = gloo[2][0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((1e3 * row["comm_low_s"], 1e3 * row["comm_high_s"]))
    assert CROWDED in figure.get_suptitle()
    assert CROWDED not in charts.sizes(summarize(made_run(sizes=(1024, 4096)))).get_suptitle()
    assert [axes.get_title() for axes in charts.scaling([summary, summarize(redrawn(sweep, ranks=9))]).axes] == [
        "Exchange of 1K", "Exchange of 4K"]  # fmt: skip


def test_sizes_show_the_fastest_rival_over_the_fastest_vote():
    run = made_run(sizes=(1024, 4096, 16384))
    for line in run.exchange:
        if line["bytes"] == 1024 and line["method"] == "gloo":
            line["seconds"] /= 8
        line["wrong"] = int(line["bytes"] == 16384 and line["method"] == "vote-alltoall")
    summary = summarize(run)
    times, ratio = charts.sizes(summary).axes
    assert times.get_title(loc="left") == "off the axis: none, which sends nothing, 0.001003 to 0.001003 ms"
    assert times.get_ylim()[0] > 0.5  # ms
    points = [(point[0].get_xdata()[0], point[0].get_ydata()[0], point[0].get_color()) for point in ratio.containers]
    assert points == [(1024, pytest.approx(0.5), looks.KINDS["rival"]), (4096, pytest.approx(4), looks.KINDS["vote"])]
    for size, point in zip((1024, 4096), ratio.containers, strict=True):
        ends = point[2][0].get_segments()[0][:, 1]
        assert tuple(ends) == pytest.approx([summary.answers[size][f"speedup_{end}"] for end in ("low", "high")])
    assert any(set(line.get_ydata()) == {1} for line in ratio.lines)


@pytest.mark.parametrize("methods", [["none"], ["gloo"], ["none", "vote-alltoall"]])
def test_a_sweep_without_a_vote_or_a_rival_has_no_ratio(methods):
    run = made_run(sizes=(1024, 4096))
    run.head |= {"methods": methods, "baseline": "gloo" if "gloo" in methods else None}
    run.samples = [line for line in run.samples if line["method"] in methods]
    assert len(charts.sizes(summarize(run)).axes) == 1
