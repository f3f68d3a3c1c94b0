"""What the experiments in benchmarks/ measure with, and how their figures are kept."""

import json
import re
import sys

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import keep
from benchmarks.paper import claim, noise, quadratic
from benchmarks.speed import null, restarts
from mpisign.report import rows
from mpisign.report.samples import Measured

DRAWS, COORDINATES = 1000, 200


@pytest.fixture(scope="module")
def chance():
    rng = np.random.default_rng(0)
    return np.sort(np.concatenate([noise.valley(rng.random((DRAWS, 1000), np.float32)) for _ in range(20)]))


@pytest.mark.parametrize(
    ("draw", "found"),
    [
        (lambda rng, shape: rng.standard_normal(shape), set()),
        (lambda rng, shape: rng.standard_t(5, shape), set()),  # heavy tails are no skewness
        (lambda rng, shape: rng.uniform(-1, 1, shape), set()),
        (lambda rng, shape: rng.exponential(size=shape) - 1, {"skewed", "above the bound"}),  # the median is below 0
        (lambda rng, shape: rng.standard_normal(shape) + 2.5 * rng.choice([-1, 1], shape), {"two modes"}),
    ],
    ids=["normal", "heavy tails", "uniform", "exponential", "two normals"],
)
def test_verdicts_on_known_distributions(draw, found, chance):
    draws = draw(np.random.default_rng(1), (DRAWS, COORDINATES)) + 1e-3
    verdicts, S, _ = noise.judge(draws.astype(np.float32), np.full(COORDINATES, 1e-3), chance)
    assert {name for name, which in verdicts.items() if which.mean() > 0.9} == found
    assert {name for name, which in verdicts.items() if which.mean() > 0.05} == found
    assert (noise.CRITICAL > S).all()


def test_the_gradients_of_pictures_average_to_the_mini_batchs():
    torch.manual_seed(0)
    model, pictures, labels = noise.build(), torch.rand(6, 1, 8, 8), torch.arange(6)
    whole = torch.autograd.grad(nn.functional.cross_entropy(model(pictures), labels), list(model.parameters()))
    each = noise.gradients(model, pictures, labels)
    flat = nn.utils.parameters_to_vector(whole).numpy()
    np.testing.assert_allclose(each.mean(axis=0), flat, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "none"),
        ([4], "4"),
        ([0, 1, 2, 14], "0 to 2, 14"),
        ([12, 13, "one"], "12 to 13, one"),
        (["one", 2], "one, 2"),
    ],
)
def test_numbers_that_follow_each_other_are_said_as_a_span(names, said):
    assert quadratic.listed(names) == said


def test_to_the_vote_a_traitor_who_scales_is_one_who_inverts(monkeypatch):
    monkeypatch.setattr(quadratic, "STEPS", 50)
    rates = {"vote": [0.01], "mean": [0.01]}
    ends = [quadratic.descend([-scale] + [1] * (quadratic.P - 1), rates, seed=3) for scale in (1, quadratic.SCALE)]
    assert np.array_equal(ends[0]["vote"], ends[1]["vote"])
    assert ends[0]["mean"][0, -1] < ends[0]["mean"][0, 0] < ends[1]["mean"][0, -1]


@pytest.mark.parametrize("traitors", [0, 13])
def test_the_quadratic_is_what_it_says(traitors, monkeypatch):
    """A slow loop over the workers, sign by sign, ends at the same objective."""
    monkeypatch.setattr(quadratic, "STEPS", 25)
    weights = np.array([-1] * traitors + [1] * (quadratic.P - traitors), np.float32)
    found = quadratic.descend(weights, {"vote": [0.5, 0.25], "mean": [0.5, 0.25]}, seed=5)
    rng = np.random.default_rng(5)
    vote = mean = rng.standard_normal(quadratic.N, np.float32)
    normal = lambda: rng.standard_normal((quadratic.P, quadratic.N), np.float32)  # noqa: E731
    for _ in range(25):
        sent = [(w * (vote + z), w * (mean + z)) for w, z in zip(weights, normal(), strict=True)]
        vote = vote - np.float32(0.25) * np.sign(sum(np.sign(gradient) for gradient, _ in sent))
        mean = mean - np.float32(0.25) * np.mean([gradient for _, gradient in sent], axis=0)
    for x, method in ((vote, "vote"), (mean, "mean")):
        assert found[method][1, -1] == pytest.approx(0.5 * np.sum(x.astype(float) ** 2), rel=1e-4)


def run_keep(monkeypatch, *arguments):
    def draw(lines):
        from matplotlib.figure import Figure

        figure = Figure()
        figure.subplots().plot(*lines[0]["points"])
        return figure

    monkeypatch.setattr(sys, "argv", ["name", *map(str, arguments)])
    measure = lambda: iter([{"points": ((0.1, 0.2), (1, 3))}])  # noqa: E731
    keep.keep_and_show("name", "What it asks.", measure, lambda lines, style: print(lines), draw)


def test_a_kept_figure_is_redrawn_to_the_byte(tmp_path, monkeypatch, capsys):
    record, fresh, again = tmp_path / "r.jsonl", tmp_path / "new" / "a.svg", tmp_path / "b.svg"
    run_keep(monkeypatch, "--output", record, "--figure", fresh)
    run_keep(monkeypatch, "--show", record, "--figure", again)
    assert "mpisign commit" in capsys.readouterr().out
    for kind in (".svg", ".png"):
        assert fresh.with_suffix(kind).read_bytes() == again.with_suffix(kind).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.png", "b.svg", "new", "r.jsonl"]
    assert [json.loads(line) for line in record.read_text().splitlines()][1:] == [{"points": [[0.1, 0.2], [1, 3]]}]


@pytest.mark.parametrize(("name", "said"), [("a.pdf", "does not end in .svg"), ("r.jsonl/a.svg", "is not a folder")])
def test_a_figure_that_cannot_be_is_refused_before_the_measurement(name, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "r.jsonl").write_text("")
    with pytest.raises(SystemExit):
        run_keep(monkeypatch, "--figure", tmp_path / name)
    assert said in capsys.readouterr().err


def null_line(block=1, unlike=1.0, length=1000):
    """A series whose samples are what they should be, or one vote of which takes `unlike` as long as the others."""
    rng = np.random.default_rng(0)
    shared = rng.lognormal(0, 0.1, length)
    seconds = {name: 1e-3 * shared * rng.lognormal(0, 0.02, length) for name in null.KINDS}
    seconds[null.SLOWED] = seconds[null.SLOWED] * 1.05
    seconds["vote a"] *= unlike
    if block > 1:
        del seconds[null.SLOWED]
    return {"type": "series", "ranks": 2, "cores": 2, "bound": True, "coordinates": 2**14, "block": block,
            "schedule": "overlap" if block > 1 else "serial",
            "seconds": {name: values.tolist() for name, values in seconds.items()}}  # fmt: skip


@pytest.mark.parametrize("block", [1, 2])
def test_the_null_experiment_counts_what_it_says(block):
    series = null.read(null_line(block))
    assert series.length == 1000 // block
    for n, runs, wrong, planted, slow, told, nine in null.rates(series):
        assert runs == min(null.MOST, series.length // n)
        assert max(wrong) <= 0.05 * runs + 2 * (0.05 * 0.95 * runs) ** 0.5
        assert planted == sorted(planted)
        assert (slow is None) == (block == 2)
        if n >= 50:
            assert planted[-1] == runs
            assert told < 0.1
            assert nine > 0.7 * runs or runs < 10


def test_the_null_experiment_sees_names_that_are_not_alike():
    series = null.read(null_line(unlike=1.05))
    rates = {n: (runs, wrong) for n, runs, wrong, *_ in null.rates(series)}
    assert rates[200][1][0] == rates[200][0]  # against the baseline
    assert rates[200][1][2] < rates[200][0]  # the answer is of the fastest vote, and another is
    assert any(row for _, row, *_ in null.replays(series, 0.005))


def test_the_null_experiment_plays_until_by_the_benchs_rule(capsys):
    series = null.read(null_line())
    ended = null.replays(series, 0.02)
    assert len(ended) > 5
    at = 0
    for taken, *_ in ended:
        part = series.cut(slice(at, at + taken), names=null.ALIKE)
        run = null.empty(part, 0.02)
        measured = Measured(np.zeros(1), part.seconds, part.seconds, dict.fromkeys(part.seconds, 0))
        assert rows.widest_interval(run, measured) <= 0.02
        at += taken
    null.show([null_line(), null_line(2)], "simple")
    assert "overlapped model" in capsys.readouterr().out


def restart_lines(spread, drift=0.0):
    rng = np.random.default_rng(0)
    head = {"methods": ["gloo", "vote-alltoall"], "kinds": {"gloo": "rival", "vote-alltoall": "vote"}, "block": 1,
            "config": {"sizes": [4, 16], "schedule": "serial", "iterations": 20}, "machine": {"ranks": 2}}  # fmt: skip
    names = ["iteration", "rank", "method", "bytes", "seconds", "wrong"]
    return [{"type": "start", "head": head, "names": names, "samples": [
                [i, 0, method, size, rng.lognormal(0, 0.01) * factor, 0]
                for method in head["methods"] for size in (4, 16)
                for factor in [rng.lognormal(0, spread) * (1 + drift) ** number]
                for i in range(20)]} for number in range(20)]  # fmt: skip


def test_restarts_that_differ_are_seen_where_no_difference_is_too_small(capsys):
    restarts.show(restart_lines(0.05), "plain")
    lines = capsys.readouterr().out.splitlines()
    pairs, every, sides = (next(line for line in lines if line.startswith(f"{name}  ") and f"  {least} %" in line)
                           for name, least in (("any two", 10), ("any two", 0), ("5 and 5, in turns", 0)))  # fmt: skip
    cells = [float(re.findall(r"([\d.]+)%", line)[0]) for line in (pairs, every, sides)]
    assert cells[0] < 30 < cells[1]
    assert cells[2] < 5
    assert "100%" in sides


def test_a_drift_from_start_to_start_is_a_false_verdict_between_blocks_but_not_in_turns(capsys):
    restarts.show(restart_lines(0.01, drift=0.02), "plain")
    lines = capsys.readouterr().out.splitlines()
    with_one = [float(re.findall(r"([\d.]+)%", next(line for line in lines if line.startswith(name)))[1])
                for name in ("5 and 5, block after block", "5 and 5, in turns")]  # fmt: skip
    assert with_one == [100, 0]


def test_the_papers_setting_in_the_model(capsys):
    lines = list(claim.measure())
    wire = {line["method"]: 1e3 * line["bytes"] / (10e9 / 8) for line in lines[1:]}  # ms at 10 Gbit/s
    assert {name: round(ms, 1) for name, ms in wire.items()} == {
        "nccl": 152.7, "bf16": 76.3, "vote-server": 71.6, "vote-alltoall": 4.8, "vote-allgather": 35.8}  # fmt: skip
    serial, hidden = (claim.seconds(lines, 10, overlapped=overlapped) for overlapped in (False, True))
    assert serial["nccl"] == pytest.approx(128 / 367 + 0.1527, abs=1e-3)
    assert set(hidden.values()) == {lines[0]["compute_s"]}  # backward is longer than each of them
    assert claim.saved(lines, "vote-server", gbit=10, overlapped=False) == pytest.approx(
        100 * (152.7 - 71.6) / (348.8 + 152.7), abs=0.1
    )
    claim.show(lines, "simple")
    assert "16 % at 10 Gbit/s, and 25 % where the wire gives 4.9" in capsys.readouterr().out
