import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from launch import ROOT
from made import kept, made_run

from mpisign.bench import __main__ as bench
from mpisign.ranks import machine
from mpisign.report import __main__ as report
from mpisign.report import formats, phases, records, rows, table
from mpisign.report.answer import answer_line, smallest_line
from mpisign.report.notes import notes
from mpisign.report.statistics import Median, enough
from mpisign.report.summary import summarize
from mpisign.report.text import percent, ratio_and_interval


def test_a_record_comes_back_as_it_was(tmp_path):
    run = made_run()
    again = records.read(kept(run, tmp_path / "new" / "folder" / "r.jsonl"))
    assert again == run
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["r.jsonl"]


def test_a_write_that_fails_leaves_nothing_and_keeps_the_old(tmp_path):
    path = kept(made_run(), tmp_path / "r.jsonl")
    before = path.read_bytes()

    def broken():
        yield "half"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        records.write(path, broken())
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_costs_the_record_but_not_the_table(tmp_path, monkeypatch, capsys):
    def full(path, lines):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records, "write", full)
    how = SimpleNamespace(format="csv", per_iteration=False, wide=False)
    assert bench.finish(made_run(), SimpleNamespace(path=tmp_path / "r.jsonl", config=how), print) == 1
    said = capsys.readouterr()
    assert said.out.startswith("method,")
    assert said.err.count("\n") == 1
    assert "No space left on device" in said.err


def test_where_a_record_can_go(tmp_path):
    assert records.unwritable(Path("/dev/null")) == "/dev/null is no ordinary file"
    assert records.unwritable(Path("/dev/null/x")) == "/dev/null is not a folder"
    assert records.unwritable(tmp_path) == f"{tmp_path} is a folder"
    assert records.unwritable(tmp_path / "a" / "b.jsonl") is None


@pytest.mark.parametrize("text", ["", "{}", "[1]", "no json", '{"type": "run", "format": 1}', '{"type": "end"}'])
def test_what_is_no_record_is_refused(tmp_path, text):
    (tmp_path / "r").write_text(text)
    with pytest.raises(ValueError, match="no record"):
        records.read(tmp_path / "r")
    assert report.main([str(tmp_path / "r")]) == 2


def test_rows_take_the_slowest_rank_and_pair_the_iterations():
    found = {row["method"]: row for row in summarize(made_run()).rows}
    vote = found["vote-alltoall"]
    assert tuple(vote) == rows.KEYS
    assert vote["compute_s"] == pytest.approx(10e-3, rel=0.01)
    assert vote["comm_s"] == pytest.approx(2e-3, rel=0.01)
    assert vote["iteration_s"] == pytest.approx(12e-3, rel=0.01)
    assert vote["images_per_s"] == pytest.approx(6 / 12e-3, rel=0.01)
    assert vote["speedup"] == pytest.approx(18 / 12)
    assert vote["comm_ratio"] == pytest.approx(4)
    assert (vote["sent_bytes"], vote["received_bytes"], vote["busiest_bytes"]) == (20, 20, 30)
    assert vote["verdict"] == "faster"
    assert found["gloo"]["verdict"] == "baseline"
    assert found["none"]["verdict"] == "ceiling"
    assert found["none"]["wrong"] is None


@pytest.mark.parametrize(("schedule", "slow", "said"), [
    ("serial", 1.0, ("Yes", "12.04", "18.06", "it is", "1.50")),
    ("overlap", 1.0, ("Yes", "11.04", "14.05", "it is", "1.27")),
    ("serial", 8.0, ("No", "26.09", "18.06", "it is slower,", "0.69")),
])  # fmt: skip
def test_the_answer_holds_the_fastest_vote_against_the_fastest_rival(schedule, slow, said):
    run = made_run(schedule=schedule, slow=slow)
    word, vote, rival, it_is, ratio = said
    line = (
        f"Does it pay here? {word}: with the fastest one-bit exchange (vote-alltoall), "
        f"{'beside backward' if schedule == 'overlap' else 'once backward is done'}, an iteration takes {vote} ms, "
        f"with the fastest rival (gloo) {rival} ms: {it_is} {ratio} times as fast, pair by pair (between {ratio} and "
        f"{ratio} with 95 % confidence)."
    )
    assert plain(table.render(summarize(run), "table")).count(line) == 2  # first and last
    assert table.render(summarize(run), "markdown").splitlines().count(line) == 1
    samples = [line for line in run.samples if line.get("method") != "gloo"]
    alone = records.Run(run.head | {"methods": ["none", "vote-alltoall"], "baseline": None}, samples, run.end)
    assert summarize(alone).answer is None
    assert "Does it pay here? No answer: to tell needs a vote and a rival" in table.render(summarize(alone), "table")


def plain(text):
    """The text without its line breaks."""
    return " ".join(text.split())


def test_each_row_is_held_against_the_fastest_rival_too():
    run = made_run()
    bf16 = [
        line | {"method": "bf16", "seconds": line["seconds"] * 0.5} for line in run.exchange if line["method"] == "gloo"
    ]
    run.samples += bf16
    run.head["methods"].append("bf16")
    run.head["kinds"]["bf16"] = "rival"
    run.head["traffic"]["model"]["bf16"] = [[200, 200]] * 2
    found = {row["method"]: row for row in summarize(run).rows}
    vote = found["vote-alltoall"]
    assert (vote["rival"], vote["rival_verdict"]) == ("bf16", "faster")
    assert vote["speedup"] == pytest.approx(18 / 12)
    assert vote["rival_speedup"] == pytest.approx(14 / 12)
    assert vote["rival_low"] <= vote["rival_speedup"] <= vote["rival_high"]
    assert [found[name]["rival_verdict"] for name in ("none", "gloo", "bf16")] == ["ceiling", "slower", "fastest rival"]
    for line in bf16:
        line["wrong"] = 1  # a rival that is wrong is none
    assert summarize(run).rows[-1]["rival"] == "gloo"


def test_what_is_measured_so_far_is_never_kept_from_before():
    run, whole = made_run(iterations=2), made_run(iterations=9)
    before = rows.widest(run)
    assert before == math.inf  # of too few samples
    run.samples += whole.samples[len(run.samples) :]
    assert rows.widest(run) == rows.widest(whole) != before


@pytest.mark.parametrize("form", formats.FORMATS)
def test_a_wrong_row_has_no_verdict(form):
    run = made_run()
    next(line for line in run.exchange if line["method"] == "vote-alltoall")["wrong"] = 3
    summary = summarize(run)
    vote = next(row for row in summary.rows if row["method"] == "vote-alltoall")
    assert (vote["verdict"], vote["rival_verdict"], vote["wrong"]) == ("wrong", "wrong", 3)
    assert summary.answer is None
    text = table.render(summary, form)
    assert "faster" not in text
    assert "wrong" in next(line for line in text.splitlines() if "vote-alltoall" in line) or form == "json"


def test_what_was_wrong_where_no_sample_was_taken_shows_too():
    run = made_run()
    run.end["worst"] = [{"method": "vote-alltoall", "wrong": 2}, {"method": "vote-alltoall", "wrong": 3}]
    vote = next(row for row in summarize(run).rows if row["method"] == "vote-alltoall")
    assert (vote["verdict"], vote["wrong"]) == ("wrong", 3)


@pytest.mark.parametrize(("size", "wrong"), [(4096, [0, 3]), (None, [3, 3])])
def test_what_was_wrong_at_one_size_is_wrong_there_alone(size, wrong):
    run = made_run(sizes=(1024, 4096))
    run.end["worst"] = [{"method": "vote-alltoall", **({"bytes": size} if size else {}), "wrong": 3}]
    summary = summarize(run)
    assert [row["wrong"] for row in summary.rows if row["method"] == "vote-alltoall"] == wrong
    for cells, count in zip(table.parts(summary, wide=True)[1].cells, wrong, strict=True):
        assert ["wrong" in cell for cell in cells[1:-1]] == [False, False, count > 0]
    assert [int(cells[-1]) for cells in table.parts(summary)[0].cells] == wrong


def test_replicas_that_differ_leave_no_verdict():
    run = made_run()
    run.end["replicas_identical"] = False
    summary = summarize(run)
    assert summary.answer is None
    assert {row["verdict"] for row in summary.rows} == {"wrong", "ceiling"}


def test_until_looks_at_speed_ups_against_the_fastest_rival_too():
    run = made_run(iterations=20)
    run.head["baseline"] = None
    for line in run.samples:  # what all methods share cancels in their ratios
        for name in {"seconds", "data", "forward", "backward", "step"} & set(line):
            line[name] *= 1 + line["iteration"] % 2
    assert rows.widest(run) < 0.1


def test_nothing_is_held_against_a_baseline_that_is_wrong():
    run = made_run()
    next(line for line in run.exchange if line["method"] == "gloo")["wrong"] = 1
    found = {row["method"]: row for row in summarize(run).rows}
    assert found["gloo"]["verdict"] == "wrong"
    assert found["vote-alltoall"]["verdict"] == "baseline is wrong"
    assert found["vote-alltoall"]["rival_verdict"] is None
    assert "verdict=baseline-is-wrong wrong=0" in table.render(summarize(run), "lines")


def with_times(seconds):
    """A run without compute whose methods took so many seconds, iteration by iteration, on both ranks."""
    iterations = len(next(iter(seconds.values())))
    run = made_run(iterations=iterations)
    run.head |= {"methods": list(seconds), "baseline": next(iter(seconds)), "lossy": []}
    run.head["kinds"] = {name: name.split()[0] for name in seconds}
    run.head["traffic"] = {"model": dict.fromkeys(seconds, [[1, 1]] * 2)}
    run.samples = [line | dict.fromkeys(("data", "forward", "backward", "step"), 0.0) for line in run.compute]
    run.samples += [
        {"type": "exchange", "rank": rank, "iteration": i, "method": name, "wrong": 0, "seconds": float(series[i])}
        for name, series in seconds.items() for i in range(iterations) for rank in range(2)
    ]  # fmt: skip
    return run


def test_verdicts_of_tables_hold_for_all_rows_together():
    rng, names = np.random.default_rng(1), [f"{kind} {i}" for kind in ("rival", "vote") for i in range(5)]
    false = {"verdict": 0, "rival_verdict": 0, "answer": 0}
    for _ in range(200):
        summary = summarize(with_times(dict(zip(names, rng.lognormal(sigma=0.1, size=(10, 20)), strict=True))))
        for key in ("verdict", "rival_verdict"):
            false[key] += any(row[key] in ("faster", "slower") for row in summary.rows)
        false["answer"] += summary.answer["verdict"] in ("faster", "slower")
        for row in summary.rows:
            if row["rival_verdict"] == "indistinguishable":  # as the interval that is shown says
                assert row["rival_low"] <= 1 <= row["rival_high"]
    assert all(count <= 0.05 * 200 for count in false.values()), false


def test_medians_and_ratios_that_point_different_ways_are_no_verdict():
    vote, rival = np.repeat([1.0, 3.0, 2.0], [16, 16, 8]), np.repeat([1.01, 3.1, 0.5], [16, 16, 8])
    summary = summarize(with_times({"rival a": rival, "vote a": vote}))
    answer, row = summary.answer, summary.rows[1]
    assert answer["rival_s"] < answer["vote_s"]
    assert 1 < answer["speedup_low"] <= answer["speedup"] == row["rival_speedup"]
    assert [row["verdict"], row["rival_verdict"], answer["verdict"]] == ["indistinguishable"] * 3
    assert "Can't tell: " in answer_line(summary)
    assert "the medians and the paired samples point different ways" in answer_line(summary)


def test_a_baseline_chosen_with_the_times_known_is_held_to_all_that_could_be(tmp_path, capsys):
    series = {"rival a": 1.0, "vote a": 2.0, "vote b": 4.0, "vote c": 8.0}
    path = kept(with_times({name: np.full(7, seconds) for name, seconds in series.items()}), tmp_path / "r.jsonl")
    assert (rows.together(records.read(path)), enough(3)) == (3, 7)
    assert (rows.together(records.read(path), 4), enough(6)) == (6, 8)
    for baseline, said in (("rival a", "slower"), ("vote a", "too few samples")):
        assert report.main([str(path), "--baseline", baseline, "--format", "json"]) == 0
        assert json.loads(capsys.readouterr().out)["rows"][2]["verdict"] == said
        assert report.main([str(path), "--baseline", baseline]) == 0
        assert ("each column has enough from 8 on" in capsys.readouterr().out) == (said != "slower")


def test_an_interval_is_as_wide_as_its_farther_side():
    run = with_times({"rival a": [1.0] * 6 + [1.5], "vote a": [1.0] * 7})
    assert rows.widest(run) == pytest.approx(0.5)


def test_replicas_that_differ_and_traces_are_warned_of():
    run = made_run()
    assert not any("WARNING" in line and ("replicas" in line or "traced" in line) for line in notes(summarize(run)))
    run.end["replicas_identical"], run.head["config"]["trace"] = False, True
    said = notes(summarize(run))
    assert any(line.startswith("WARNING: replicas: DIFFER") for line in said)
    assert any(line.startswith("WARNING: traced: these times are not for verdicts") for line in said)
    assert not any("bit-identical" in line for line in said)


def test_a_block_is_one_sample():
    run = made_run(schedule="overlap", iterations=8)
    halves = [line | {"iteration": 2 * line["iteration"] + half, "seconds": line["seconds"] * (1 + half)}
              for line in run.overlapped for half in (0, 1)]  # fmt: skip
    run.samples = [line for line in run.samples if line["type"] != "overlapped"] + halves
    run.head["block"] = 2
    summary = summarize(run)
    assert [len(samples) for samples in summary.measured[None].iteration.values()] == [8] * 3
    assert summary.measured[None].iteration["gloo"][0] == pytest.approx(14e-3 * 1.5)
    assert "16 iterations, schedule overlap (a sample is the mean of 2 in a row)" in table.title(run)
    assert summary.samples == 8
    run.samples = [line for line in run.samples if line["iteration"] < (8 if line["type"] == "overlapped" else 4)]
    assert any("4 samples: intervals are the range" in note for note in notes(summarize(run)))


def test_published_overlapped_records_are_of_blocks():
    assert [records.read(path).head["block"] for path in EVERY_KIND] == [1, 2, 1]


def test_a_run_says_what_it_could_find():
    rng = np.random.default_rng(2)
    run = with_times(dict(zip(("rival a", "rival b", "vote a"), rng.lognormal(sigma=0.1, size=(3, 200)), strict=True)))
    summary = summarize(run)
    (between,) = summary.smallest_answers
    assert 0.01 < between < 0.1
    line = smallest_line(summary)
    assert line in plain(table.render(summary, "table"))
    assert "in most such runs" in line
    assert f"a difference of {percent(between)} between the fastest vote and the fastest rival" in line
    assert "from the baseline" in line
    for sample in run.exchange:
        sample["wrong"] = int(sample["method"] == "rival a")
    baseline_wrong = smallest_line(summarize(run))
    assert "between the fastest vote and the fastest rival" in baseline_wrong
    assert "from the baseline" not in baseline_wrong
    for sample in run.exchange:
        sample["wrong"] = 1
    assert not smallest_line(summarize(run))
    few = with_times({"rival a": [1.0] * 5, "vote a": [1.0] * 5})
    assert "no difference, however large" in table.render(summarize(few), "table")


def test_the_record_says_what_a_method_is_and_not_its_name():
    run = made_run()
    other = {"none": "nothing", "gloo": "vote-for-the-mean", "vote-alltoall": "signs"}
    run.samples = [line | ({"method": other[line["method"]]} if "method" in line else {}) for line in run.samples]
    for facts, key in ((run.head, "kinds"), (run.head["traffic"], "model")):
        facts[key] = {other[name]: value for name, value in facts[key].items()}
    run.head |= {"methods": list(other.values()), "baseline": other["gloo"], "lossy": ["signs"]}
    summary = summarize(run)
    assert (summary.answer["vote"], summary.answer["rival"]) == ("signs", "vote-for-the-mean")
    assert [row["verdict"] for row in summary.rows] == ["ceiling", "baseline", "faster"]
    assert summary.rows[0]["wrong"] is None
    assert any("lossy" in note for note in notes(summary))
    assert not any("lossy" in note for note in notes(summarize(made_run())))


def test_ranks_that_are_not_bound_to_cores_are_warned_of():
    assert "not bound" in "\n".join(notes(summarize(made_run(bound=False))))
    assert "not bound" not in "\n".join(notes(summarize(made_run(bound=True))))
    assert "not bound" not in "\n".join(notes(summarize(made_run(bound=False, ranks_per_core=2.0))))  # they cannot be


def uneven(run):
    """The same record with ranks and iterations that differ in all that they can."""
    dice, spans = np.random.default_rng(0), {"seconds", "pack", "all-to-all", "data", "forward", "backward", "step"}
    run.samples = [line | {name: line[name] * dice.lognormal(0, 0.5) for name in spans.intersection(line)}
                   for line in run.samples]  # fmt: skip
    run.head["block"] = 2 if run.overlapped else 1
    return run


@pytest.mark.parametrize("schedule", ["serial", "overlap"])
def test_the_parts_add_up_to_the_table(schedule):
    summary = summarize(uneven(made_run(schedule=schedule)))
    iteration, exchange, overlapped = summary.breakdown
    for shown, key in ((overlapped or iteration, "iteration_s"), (exchange, "comm_s")):
        for row, parts in zip(summary.rows, shown.rows, strict=True):
            assert set(parts) == {"method", *shown.names}
            whole = sum(parts[name] for name in shown.names if name not in shown.inside)
            assert whole == pytest.approx(row[key], rel=1e-12)
    assert "wait" not in {*iteration.names, *exchange.names, *(overlapped or iteration).names}  # it is no sample's


def test_the_parts_of_an_iteration_are_means_over_ranks():
    iteration, exchange, _ = summarize(made_run()).breakdown
    vote = next(row for row in iteration.rows if row["method"] == "vote-alltoall")
    assert iteration.names == ["gradient", "pack", "all-to-all", "step", "rival's exchange", "other", "imbalance"]
    assert exchange.names == ["pack", "all-to-all", "rival's exchange", "other", "imbalance"]
    expected = {"gradient": 9e-3, "step": 1e-3, "pack": 5e-4, "all-to-all": 1e-3, "other": 5e-4}
    for name, seconds in expected.items():  # one rank takes half as long
        assert vote[name] == pytest.approx(0.75 * seconds, rel=0.01)
    assert vote["imbalance"] == pytest.approx(12e-3 * 0.25, rel=0.01)
    gloo = next(row for row in iteration.rows if row["method"] == "gloo")
    assert (gloo["rival's exchange"], gloo["other"]) == (pytest.approx(0.75 * 8e-3, rel=0.01), 0)
    narrow = phases.condensed(iteration)
    assert narrow.names == ["gradient", "coding", "wire", "step", "rival's exchange", "other", "imbalance"]
    for wide, row in zip(iteration.rows, narrow.rows, strict=True):
        assert sum(row[name] for name in narrow.names) == pytest.approx(sum(wide[name] for name in iteration.names))


def test_overlapped_rows_tell_what_is_exposed():
    found = {row["method"]: row for row in summarize(made_run(schedule="overlap")).rows}
    vote = found["vote-alltoall"]
    assert tuple(vote) == rows.OVERLAP_KEYS
    assert vote["iteration_s"] == pytest.approx(11e-3, rel=0.01)
    assert vote["exposed_s"] == pytest.approx(1e-3, rel=0.01)
    assert vote["exposed_low_s"] <= vote["exposed_s"] <= vote["exposed_high_s"]
    assert vote["comm_s"] == pytest.approx(2e-3, rel=0.01)
    assert vote["hidden"] == pytest.approx(0.5, rel=0.01)
    assert vote["speedup"] == pytest.approx(14 / 11, rel=0.01)
    assert found["none"]["exposed_s"] is None
    assert found["none"]["verdict"] == "ceiling"
    parts = summarize(made_run(schedule="overlap")).breakdown.overlapped
    assert parts.names == ["data", "forward", "backward", "step", "other", "imbalance", "pack", "all-to-all"]
    assert parts.inside == ["pack", "all-to-all"]
    assert parts.rows[2]["pack"] == pytest.approx(5e-4 * 0.75, rel=0.01)
    narrow = phases.condensed(parts)
    assert narrow.names == ["gradient", "step", "other", "imbalance", "coding", "wire"]
    assert narrow.inside == ["coding", "wire"]


@pytest.mark.parametrize("schedule", ["serial", "overlap"])
@pytest.mark.parametrize("form", formats.FORMATS)
def test_every_form_tells_every_method(form, schedule):
    text = table.render(summarize(made_run(schedule=schedule)), form, per_iteration=True)
    keys = rows.OVERLAP_KEYS if schedule == "overlap" else rows.KEYS
    assert all(method in text for method in ("none", "gloo", "vote-alltoall"))
    if form == "json":
        whole = json.loads(text)
        assert [tuple(row) for row in whole["rows"]] == [keys] * 3
        assert whole["answer"]["word"] == "Yes"
        assert whole["not_run"] == {"nccl": "no CUDA"}
        assert any(note.startswith("machine: ") for note in whole["notes"])
    elif form == "csv":
        assert text.splitlines()[0] == ",".join(keys)
    elif form == "lines":
        kinds = [line.split(": ")[0] for line in text.splitlines()]
        assert kinds[:4] == ["mpisign"] * 3 + ["mpisign-answer"]
        assert set(kinds) == {"mpisign", "mpisign-answer", "mpisign-note", "mpisign-not-run"}
    else:
        assert "baseline: gloo" in text
        assert re.search(r"To know:\n+- machine: .*Not run:\n+- nccl: no CUDA", text, re.S)


def test_a_sweep_has_a_row_for_each_size():
    run = made_run(sizes=(1024, 4096))
    assert [(row["bytes"], row["method"]) for row in summarize(run).rows][:4] == [
        (1024, "none"), (1024, "gloo"), (1024, "vote-alltoall"), (4096, "none")]  # fmt: skip
    text = table.render(summarize(run), "table")
    assert [line.split()[0] for line in text.splitlines() if line[:2] in ("1K", "4K")] == ["1K", "4K"]
    wide = table.render(summarize(run), "table", wide=True)
    assert [line.split()[0] for line in wide.splitlines() if line[:2] in ("1K", "4K")] == ["1K", "4K"] * 2


def swept(ratios):
    """A sweep of 1K, 2K, 4K, ... in which gloo takes so many times as long as the vote; None: the vote is wrong."""
    run = made_run(sizes=tuple(1024 << at for at in range(len(ratios))), iterations=12)
    for line in run.exchange:
        ratio = ratios[(line["bytes"] // 1024).bit_length() - 1]
        if line["method"] == "vote-alltoall":
            line["wrong"] = int(ratio is None)
        elif line["method"] == "gloo":  # 8 ms, the vote's are 2; "?" is for none faster than the other
            even = line["iteration"] % 2
            line["seconds"] *= 0.25 * ({0: 0.5, 1: 2.0}[even] if ratio == "?" else ratio or 1.0)
    return run


PAYS = "the fastest vote is faster than the fastest rival"
HELD = "held against the fastest rival, the fastest vote is"


@pytest.mark.parametrize(("ratios", "said"), [
    ((2, 3), f"Yes: at every size measured, 1K to 2K, {PAYS}."),
    ((2,), f"Yes: at every size measured, 1K, {PAYS}."),
    ((0.5, 0.5, 2, 3), f"At some sizes: from 4K on, {PAYS} at each size from 4K to 8K; below that it is slower at 1K "
     "to 2K. The crossover lies between 2K and 4K."),
    ((0.5, "?", "?", 2, 3), f"At some sizes: from 8K on, {PAYS} at each size from 8K to 16K; below that it is slower "
     "at 1K, indistinguishable at 2K to 4K. The crossover lies between 1K and 8K."),
    (("?", 2), f"At some sizes: at the largest size alone, {PAYS} at 2K; below that it is indistinguishable at 1K."),
    ((2, 0.5, 2, 2), f"At some sizes: from 4K on, {PAYS} at each size from 4K to 8K; below that it is faster at "
     "1K, slower at 2K."),
    ((2, 0.5, 2, 0.5), f"At some sizes: not at the largest: {HELD} faster at 1K and 4K, slower at 2K and 8K."),
    ((0.5, "?"), f"Can't tell: it is faster at no size measured: {HELD} slower at 1K, indistinguishable at 2K."),
    ((0.5, 0.5), f"No: it is faster at no size measured: {HELD} slower at 1K to 2K."),
    (("?", "?"), f"Can't tell: it is faster at no size measured: {HELD} indistinguishable at 1K to 2K."),
])  # fmt: skip
def test_a_sweep_says_from_which_size_on_it_pays(ratios, said):
    summary = summarize(swept(ratios))
    assert summary.answer is None
    assert answer_line(summary) == f"Does it pay here? {said}"
    assert plain(table.render(summary, "table")).count(said) == 2


def test_what_is_wrong_in_a_sweep_is_told_first_and_the_rest_is_answered():
    told = "Does it pay here? Wrong results: vote-alltoall (up to 1 coordinates in an exchange)."
    line = answer_line(summarize(swept((0.5, 2, None, 2, 2))))
    assert line.startswith(told)
    assert line.endswith(
        f"Of the others: At some sizes: from 8K on, {PAYS} at each size from 8K to 16K; below that it is slower at 1K, "
        "faster at 2K, without a vote and a rival that were right at 4K."
    )
    assert answer_line(summarize(swept((None, None)))) == f"{told} What is wrong is never called fast."


def test_too_few_samples_of_a_sweep_leave_its_question_open():
    line = answer_line(summarize(made_run(sizes=(1024, 4096), iterations=3)))
    assert line == (
        f"Does it pay here? Can't tell: it is faster at no size measured: {HELD} with too few samples for a verdict at "
        "1K to 4K."
    )


def test_each_size_of_a_sweep_has_its_ratio_with_an_interval_that_holds_for_all():
    summary = summarize(swept((0.5, None, 2)))
    (part,) = table.parts(summary)
    assert part.headers[1:5] == ["fastest vote", "vote ms", "fastest rival", "rival ms"]
    assert part.cells == [
        ["1K", "vote-alltoall", "2.011", "gloo", "1.005", "0.50 [0.50, 0.50]", "slower", "0"],
        ["2K", "", "", "gloo", "2.011", "", "nothing to compare", "1"],
        ["4K", "vote-alltoall", "2.011", "gloo", "4.022", "2.00 [2.00, 2.00]", "faster", "0"],
    ]
    rng = np.random.default_rng(3)
    run = made_run(sizes=tuple(1024 << at for at in range(12)), iterations=20)
    for line in run.exchange:
        line["seconds"] = rng.lognormal(sigma=0.1)
    summary = summarize(run)
    for size, answer in summary.answers.items():
        found = summary.measured[size].iteration
        wide, alone = (rows.median_interval(found["gloo"] / found["vote-alltoall"], count) for count in (24, 1))
        assert (answer["speedup_low"], answer["speedup_high"]) == wide[1:]  # 12 sizes, and 2 others than the rival
        assert wide.high - wide.low > alone.high - alone.low
    assert len(summary.smallest_answers) == 12
    assert re.search(r"a difference of \S+ % to \S+ %, by size, between the fastest vote", smallest_line(summary))


def test_a_sweep_has_no_model():
    old, new = made_run(sizes=(1024, 4096)), made_run(sizes=(1024, 4096))
    new.head["config"] |= {"model": "resnet50", "batch_size": 9, "image_size": 64, "bucket_mb": 1.0}
    assert records.differences(old, new) == []
    assert not {"model", "batch_size", "image_size", "data", "schedule"} & set(old.asked)
    assert made_run().asked == made_run().head["config"]
    for row in summarize(old).rows:
        assert (row["model"], row["ranks"], row["schedule"], row["baseline"]) == (None, 2, None, "gloo")
    assert LINE.fullmatch(table.render(summarize(old), "lines").splitlines()[5])["model"] == "-"


LINE = re.compile(
    r"mpisign: method=(?P<method>[\w-]+) ranks=(?P<ranks>\d+) iteration_s=(?P<iteration_s>\d\.\d{3}e[+-]\d\d) "
    r"comm_s=(?P<comm_s>\d\.\d{3}e[+-]\d\d) speedup=(?P<speedup>-|\d+\.\d{3}) speedup_low=(?P<low>-|\d+\.\d{3}) "
    r"speedup_high=(?P<high>-|\d+\.\d{3}) verdict=(?P<verdict>-|[a-z-]+) wrong=(?P<wrong>-|\d+) bytes=(?P<bytes>-|\d+) "
    r"model=(?P<model>-|\S+) schedule=(?P<schedule>-|serial|overlap) baseline=(?P<baseline>-|\S+) "
    r"rival=(?P<rival>-|\S+) rival_speedup=(?P<rival_speedup>-|\d+\.\d{3}) rival_low=(?P<rival_low>-|\d+\.\d{3}) "
    r"rival_high=(?P<rival_high>-|\d+\.\d{3}) rival_verdict=(?P<rival_verdict>-|[a-z-]+)"
)
KEPT = ROOT / "results" / "published" / "amd-epyc-2-cores"
EVERY_KIND = [next(KEPT.glob(f"*-{name}.jsonl")) for name in (
    "resnet50-8-ranks", "resnet50-overlap-4-ranks", "sweep-4-ranks")]  # fmt: skip


@pytest.mark.parametrize("path", EVERY_KIND, ids=lambda path: path.stem)
def test_a_line_a_row_is_what_site_suites_search_for(path, capsys):
    assert report.main([str(path), "--format", "lines"]) == 0
    every, found = capsys.readouterr().out.splitlines(), summarize(records.read(path)).rows
    lines = [line for line in every if line.startswith("mpisign: ")]
    assert any(line.startswith("mpisign-warning: more ranks than cores") for line in every)
    assert len(lines) == len(found)
    for text, row in zip(lines, found, strict=True):
        read = LINE.fullmatch(text)
        assert read, text
        assert read["method"] == row["method"]
        assert float(read["iteration_s"]) == pytest.approx(row["iteration_s"], rel=1e-3)
        assert float(read["speedup"]) == pytest.approx(row["speedup"], abs=1e-3)
        assert read["wrong"] == ("-" if row["method"] == "none" else str(row["wrong"]))
        assert read["bytes"] == str(row.get("bytes", "-"))
        for key in ("model", "schedule", "baseline", "rival", "ranks"):
            assert read[key] == ("-" if row[key] is None else str(row[key]))
        assert float(read["rival_speedup"]) == pytest.approx(row["rival_speedup"], abs=1e-3)
        assert read["rival_verdict"] == row["rival_verdict"].replace(" ", "-")


def test_a_line_without_a_baseline_or_enough_samples():
    run = made_run()
    run.head["baseline"] = None
    run.head["config"]["model"] = "my own\tnet"
    read = LINE.fullmatch(table.render(summarize(run), "lines").splitlines()[2])
    assert (read["speedup"], read["baseline"], read["model"]) == ("-", "-", "my-own-net")
    last = LINE.fullmatch(table.render(summarize(made_run(iterations=3)), "lines").splitlines()[2])
    assert last["verdict"] == "too-few-samples"
    assert last["ranks"] == "2"


def test_a_machine_is_told_by_what_it_is():
    facts = machine.machine()
    assert set(facts) == {"cpu", "cores", "system", "python", "torch", "numpy", "numba", "mpi4py", "mpisign", "commit"}
    name = records.folder_name({"device": "Intel(R) Xeon(R) CPU E5-2690 v4 @ 2.60GHz", "cores": 28})
    assert name == "intel-xeon-e5-2690-v4-28-cores"


@pytest.mark.parametrize(("interval", "said"), [
    ((1.234, 1.1, 123.4), "1.23 [1.10, 123]"),
    ((1.0, 1.0, 1.0), "1.00 [1.00, 1.00]"),
    ((1.012, 1.003, 1.02), "1.012 [1.003, 1.020]"),
    ((0.99, 0.98, 0.9996), "0.9900 [0.9800, 0.9996]"),
    ((0.99, 0.98, 0.99996), "0.9900 [0.9800, <1]"),
    ((1.2, 1.00001, 1.3), "1.2000 [>1, 1.3000]"),
    ((1.0, 1 - 1e-15, 1 + 1e-15), "1.00 [1.00, 1.00]"),
    ((1.0, math.nan, math.nan), "1.00 [nan, nan]"),
])  # fmt: skip
def test_ratios_print_with_their_interval_whose_ends_are_not_1_unless_they_are(interval, said):
    assert ratio_and_interval(Median(*interval)) == said


@pytest.mark.parametrize(("asked", "said"), [(None, "DDP's buckets: 2"), (25.0, "with --bucket-mb 25, not its own: 2")])
def test_a_note_tells_the_buckets_of_an_overlapped_run(asked, said):
    buckets = [{"bytes": 4_000_000, "ready": 0.01}, {"bytes": 9_700_000, "ready": 0.9992}]
    for schedule, recorded, told in (("overlap", buckets, True), ("serial", buckets, False), ("overlap", None, False)):
        run = made_run(schedule=schedule)
        run.head["config"]["bucket_mb"] = asked
        run.end |= {"buckets": recorded} if recorded else {}
        lines = [line for line in notes(summarize(run)) if "buckets" in line]
        assert len(lines) == told, (schedule, lines)
        assert all(said in line and "the last of 9.7 MB, ready at 99.9 % of backward" in line for line in lines)


def test_runs_differ_in_what_both_tell_alone():
    old, new, more = (made_run(bound=bound) for bound in (True, False, True))
    assert records.differences(old, new, more) == ["bound: True and False"]
    new.head["config"]["trace"] = True
    del new.head["machine"]["bound"]
    assert records.differences(old, new, more) == []
    more.head["config"]["trace"] = False
    assert records.differences(old, new, more) == ["trace: True and False"]


def test_records_of_another_clock_differ_and_say_so():
    runs = [made_run() for _ in range(3)]
    for clock, run in enumerate(runs, 1):
        run.head["clock"] = clock
    assert [records.differences(run, runs[-1]) for run in runs] == [["clock: 1 and 3"], ["clock: 2 and 3"], []]
    told = ["\n".join(notes(summarize(run))) for run in runs]
    assert ["warmer" in one for one in told] == [True, False, False]
    assert ["within the clock" in one for one in told] == [True, True, False]
