"""The logs of trainings: read, printed, drawn, made a page of. A real one is read in tests/docs/test_checkpoints.py."""

import csv
import io
import json
import math
import xml.etree.ElementTree as ET

import browser
import numpy as np
import pytest
from launch import skip_if_quick
from made import kept, made_run, report_alone

from mpisign.report import __main__ as report
from mpisign.report import training_charts, training_log, training_table

HOSTILE = '<script>alert("$x$")</script>'
STEPS = 4  # of an epoch
SECONDS = {"data": 1.0, "forward": 2.0, "backward": 3.0, "agree": 0.5, "check": 0.5, "step": 1.0, "pack": 99.0}
OF_STEP, VALIDATION = 8.0, 10.0  # "pack" is in a thread, beside backward


def head(ranks=2, **asked):
    config = {"data": "photos", "model": "tiny", "method": "vote-alltoall", "optimizer": "sgd", "epochs": 3,
              "batch_size": 4, "lr": 0.1, "image_size": 32, "adversaries": 0, "adversary": "invert", "seed": 0,
              "workers": 4}  # fmt: skip
    machine = {"ranks": ranks, "nodes": 1, "device": "X", "ranks_per_core": 1.0}
    pictures = {"train_pictures": STEPS * 4 * ranks + 1}
    kind = "rival" if asked.get("method") == "gloo" else "vote"
    return {"type": "train", "format": 2, "config": config | asked, "kind": kind, "machine": machine,
            "pictures": pictures}  # fmt: skip


def start(epochs=0, steps=0, **changed):
    return {"type": "start", "checkpoint": None, "epochs": epochs, "steps": steps, "changed": changed}


def step(number, epoch, **told):
    votes = {"agreement": 0.8, "apart": [], "nonfinite": 0}
    return {"type": "iteration", "step": number, "epoch": epoch, "loss": 1 / number, "lr": 0.01 * number,
            "seconds": SECONDS, "votes": votes} | told  # fmt: skip


def epoch(number, steps=STEPS, **told):
    """An epoch of which so many steps were done since the last start."""
    return {"type": "epoch", "epoch": number, "step": STEPS * number, "loss": 1 / number, "train_top1": 0.5 / number,
            "validation_loss": 2 / number, "top1": (0.25, 0.75, 0.5)[number - 1], "top5": 1.0,
            "seconds": OF_STEP * steps + VALIDATION, "images_per_s": 10.0 * number, "skipped": 0} | told  # fmt: skip


def steps_of(number, **told):
    return [step(STEPS * (number - 1) + k + 1, number, **told) for k in range(STEPS)]


def lines(epochs=3, **asked):
    whole = [head(**asked), start()]
    for number in range(1, epochs + 1):
        whole += [*steps_of(number), epoch(number)]
    return whole


def kept_log(folder, given, tail=""):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in given) + tail)
    return path


def read(path):
    return training_log.read(path, *training_log.names([path]))


def said(capsys, *arguments):
    assert report.main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments):
    """The one line with which a command line is refused."""
    assert report.main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert not printed.out
    (line,) = printed.err.splitlines()
    assert line.startswith("mpisign.report: error: ")
    return line


@pytest.fixture
def log(tmp_path):
    return kept_log(tmp_path / "a", lines())


def test_the_row_of_a_training(log):
    row = training_table.summary(read(log))
    assert {name: row[name] for name in ("run", "method", "kind", "ranks", "epochs", "epochs_asked", "steps")} == {
        "run": "a", "method": "vote-alltoall", "kind": "vote", "ranks": [2], "epochs": 3, "epochs_asked": 3,
        "steps": 12}  # fmt: skip
    assert (row["best_top1"], row["best_epoch"], row["top1"], row["train_top1"]) == (0.75, 2, 0.5, 0.5 / 3)
    assert (row["validation_loss"], row["loss"], row["images_per_s"]) == (2 / 3, 1 / 3, 20.0)
    assert row["hours"] == pytest.approx(3 * (STEPS * OF_STEP + VALIDATION) / 3600)


def test_the_table_has_a_row_a_training_and_tells_what_differs(log, tmp_path, capsys):
    other = kept_log(tmp_path / "b", lines(method="gloo", optimizer="adamw", lr=0.2, workers=0))
    lied_to = kept_log(tmp_path / "c", lines(2, adversaries=1))
    printed = said(capsys, log, other, lied_to, "--format", "markdown").splitlines()
    assert printed[0] == "tiny, photos, 32 x 32, batch 4 a rank"
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed if line.startswith("|")]
    rows = {row[0]: dict(zip(table[0], row, strict=True)) for row in table[2:]}
    assert rows["a"]["best top-1 % (epoch)"] == "75.00 (2)"
    assert (rows["b"]["method"], rows["b"]["optimizer"], rows["a"]["optimizer"]) == ("gloo", "adamw", "")
    assert (rows["c"]["epochs"], rows["c"]["traitors"], rows["a"]["traitors"]) == ("2 of 3", "1 (invert)", "")
    assert printed[-1:] == ["- lr: 0.1 (a, c), 0.2 (b)"]  # the number of workers has no part in the result
    assert "traitors" not in said(capsys, log, other)


def test_an_older_log_counted_its_epochs_from_0(tmp_path, log):
    older = [line | ({"epoch": line["epoch"] - 1} if "epoch" in line else {}) for line in lines() if line != start()]
    del older[0]["pictures"]
    older[0]["format"] = 1
    before, now = read(kept_log(tmp_path / "older", older)), read(log)
    assert (before.epochs, before.steps) == (now.epochs, now.steps)


def test_epochs_and_hours_of_each_step(log):
    training = read(log)
    assert [row["epoch"] for row in training.steps] == pytest.approx([k / STEPS for k in range(1, 3 * STEPS + 1)])
    assert [row["epoch"] for row in training.epochs] == [1, 2, 3]
    hours = [row["hours"] * 3600 for row in training.steps]
    assert hours[:5] == pytest.approx([8, 16, 24, 32, 32 + VALIDATION + 8])


def test_a_resumed_training_counts_all_its_work_and_tells_what_changed(tmp_path, capsys):
    middle = steps_of(2)
    resumed = [head(), start(), *steps_of(1), epoch(1), *middle[:2],
               start(1, 6, ranks=[2, 4], lr=[0.1, 0.3], workers=[4, 0], commit=["x", "y"]),
               *middle[2:], epoch(2, steps=2), *steps_of(3), epoch(3)]  # fmt: skip
    path = kept_log(tmp_path / "a", resumed)
    training = read(path)
    assert training.ranks == [2, 4]
    assert (training.config["lr"], training.machine["ranks"]) == (0.3, 4)
    assert training.epochs[-1]["hours"] == pytest.approx(3 * (STEPS * OF_STEP + VALIDATION) / 3600)
    printed = said(capsys, path)
    assert "2, then 4" in printed
    assert "a: from step 7 on ranks is 4, was 2, lr is 0.3, was 0.1, commit is y, was x" in printed


def test_before_an_epoch_is_finished(tmp_path, capsys, log):
    path = kept_log(tmp_path / "young", [*lines(0), *steps_of(1)[:3]])
    printed = said(capsys, path, log, "--figures", tmp_path / "out", "--format", "table")
    assert "young: no epoch is finished; steps: 3, the last with loss 0.3333" in printed
    assert [row["epoch"] for row in read(path).steps] == [0.25, 0.5, 0.75]
    assert "0 of 3" in printed
    assert len(list((tmp_path / "out").glob("*.svg"))) == 3
    older = [{name: fact for name, fact in head().items() if name != "pictures"}, *steps_of(1)]
    unknown = read(kept_log(tmp_path / "unknown", older))  # nothing tells how long an epoch is
    assert {row["epoch"] for row in unknown.steps} == {None}
    drawn = training_charts.drawings([unknown])
    assert list(drawn) == ["training-steps", "training-hours"]
    assert [len(axes.texts) for axes in drawn["training-steps"]().axes] == [0, 1, 1, 0]


def test_the_last_line_may_be_half_written(tmp_path, capsys):
    path = kept_log(tmp_path / "a", lines(2), tail='{"type": "epoch", "epo')
    printed = said(capsys, path)
    assert "WARNING: a: the last line is half-written" in printed
    assert "2 of 3" in printed
    path = kept_log(tmp_path / "b", [*lines(1), [], "x", {"type": "word", "of": "tomorrow"}, *steps_of(2), epoch(2)])
    printed = said(capsys, path)
    assert "WARNING: b: lines that can't be read: 2" in printed
    assert "2 of 3" in printed


def test_what_a_log_does_not_tell_is_left_out(tmp_path, capsys):
    bare = [{"type": "train", "config": {}}, {"type": "iteration", "step": 1}, {"type": "epoch", "step": 1}]
    path = kept_log(tmp_path / "bare", bare)
    for form in training_table.FORMATS:
        assert "bare" in said(capsys, path, "--format", form)
    said(capsys, path, "--html", tmp_path / "page.html")


def test_a_loss_that_is_not_finite_is_read_and_drawn(tmp_path, capsys):
    gone = lines()
    for line in gone:
        if line["type"] == "epoch" and line["epoch"] > 1:
            line["validation_loss"] = math.nan if line["epoch"] == 2 else math.inf
    path = kept_log(tmp_path / "a", gone)
    (whole,) = json.loads(said(capsys, path, "--format", "json"))
    assert [row["validation_loss"] for row in whole["by_epoch"]] == [2.0, None, None]
    assert "inf" in said(capsys, path)
    assert not said(capsys, path, "--figures", tmp_path / "out")


def test_curves_as_csv_and_json(log, tmp_path, capsys):
    other = kept_log(tmp_path / "b", lines(method="gloo"))
    rows = list(csv.DictReader(io.StringIO(said(capsys, log, other, "--format", "csv"))))
    assert [(row["run"], row["method"], row["epoch"]) for row in rows] == [
        (run, method, number) for run, method in (("a", "vote-alltoall"), ("b", "gloo")) for number in "123"
    ]  # fmt: skip
    assert [float(row["top1"]) for row in rows[:3]] == [0.25, 0.75, 0.5]
    assert [float(row["lr"]) for row in rows[:3]] == [0.04, 0.08, 0.12]
    steps = list(csv.DictReader(io.StringIO(said(capsys, log, "--format", "csv", "--per-iteration"))))
    assert [float(row["loss"]) for row in steps] == [1 / number for number in range(1, 13)]
    one, two = json.loads(said(capsys, log, other, "--format", "json"))
    assert (one["run"], one["best_top1"], len(one["by_epoch"]), "by_step" in one) == ("a", 0.75, 3, False)
    assert two["method"] == "gloo"
    (whole,) = json.loads(said(capsys, log, "--format", "json", "--per-iteration"))
    assert whole["by_step"] == read(log).steps
    assert "Each step:" in said(capsys, log, "--per-iteration")


def test_trainings_are_named_by_what_tells_them_apart(tmp_path):
    def named(*paths):
        return training_log.names([tmp_path / path for path in paths])

    assert named("x/a/log.jsonl") == ["a"]
    assert named("x/a/log.jsonl", "x/b/log.jsonl") == ["a", "b"]
    assert named("x/run/log.jsonl", "y/run/log.jsonl") == ["x", "y"]
    assert named("x/a/log.jsonl", "y/a/log.jsonl", "y/b/log.jsonl") == ["x/a", "y/a", "y/b"]
    assert named("x/one.jsonl", "x/two.jsonl") == ["one", "two"]


def test_what_cannot_be_printed_or_drawn_is_refused(log, tmp_path, capsys):
    record = kept(made_run(), tmp_path / "r.jsonl")
    young, out = kept_log(tmp_path / "young", lines(0)), ("--figures", tmp_path / "out")
    empty, other = tmp_path / "empty", tmp_path / "other"
    empty.touch()
    other.write_text("no log\n")
    for mixed in ((log, record), (record, log), (log, other)):
        assert f"{log} is the log of a training, {mixed[mixed[0] == log]} is none" in refused(capsys, *mixed)
    assert f"{empty} is empty" in refused(capsys, empty)
    assert f"{other}: no record of mpisign" in refused(capsys, other)
    assert "No such file" in refused(capsys, log, tmp_path / "none.jsonl")
    assert f"{log} is given twice" in refused(capsys, log, tmp_path / "a" / ".." / "a" / "log.jsonl").replace(
        "/../a", ""
    )
    for option in (("--trace", "x"), ("--project", "x"), ("--baseline", "gloo")):
        assert f"{option[0]} takes records of mpisign.bench" in refused(capsys, log, *option)
    assert "--format lines: trainings are printed as table, markdown" in refused(capsys, log, "--format", "lines")
    assert f"{young} has no step yet: there is nothing to draw" in refused(capsys, young, *out)
    assert "no epoch is finished; steps: 0" in said(capsys, young)
    assert "is one of the logs" in refused(capsys, log, "--html", log)
    assert "--html" in refused(capsys, log, "--html", tmp_path)
    assert "--figures" in refused(capsys, log, "--figures", log)
    assert not (tmp_path / "out").exists()


def curve(axes, number=0):
    line = axes.lines[number]
    return np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()


@pytest.mark.parametrize("over", training_charts.AXES)
def test_charts_show_what_was_logged(log, over):
    training = read(log)
    key, label = training_charts.AXES[over]
    loss, validation, accuracy, rate = training_charts.curves([training], over).axes
    by_step, by_epoch = ([row[key] for row in rows] for rows in (training.steps, training.epochs))
    assert curve(loss) == (by_step, [row["loss"] for row in training.steps])
    assert curve(validation) == (by_epoch, [2.0, 1.0, 2 / 3])
    assert curve(accuracy) == (by_epoch, [25.0, 75.0, 50.0])
    assert curve(accuracy, 1)[1] == pytest.approx([50, 25, 50 / 3])
    assert curve(rate) == (by_step, [row["lr"] for row in training.steps])
    assert rate.get_xlabel() == label


def test_of_many_steps_the_means_are_drawn_and_their_range(tmp_path):
    steps = [step(number, 1, loss=float(number % 2)) for number in range(1, 1001)]
    loss, *_, rate = training_charts.curves([read(kept_log(tmp_path / "a", [head(), *steps]))], "steps").axes
    x, means = curve(loss)
    assert (len(x), x[0], set(means)) == (250, 2.5, {0.5})
    (band,) = loss.collections
    assert (band.get_datalim(loss.transData).y0, band.get_datalim(loss.transData).y1) == (0, 1)
    assert loss.get_ylabel() == "means of up to 4 steps, and their range"
    assert curve(rate)[0] == list(range(1, 1001))


def test_losses_far_apart_and_all_rates_have_a_logarithmic_axis(tmp_path):
    calm, gone = lines(), lines()
    for line in gone:
        line |= {name: 100.0 for name in ("loss", "validation_loss") if name in line}
    both = [read(kept_log(tmp_path / name, one)) for name, one in (("calm", calm), ("gone", gone))]
    assert [axes.get_yscale() for axes in training_charts.curves(both, "steps").axes] == ["log", "log", "linear", "log"]
    still = read(kept_log(tmp_path / "still", [line | ({"lr": 0.0} if "lr" in line else {}) for line in calm]))
    scales = [axes.get_yscale() for axes in training_charts.curves([still], "steps").axes]
    assert scales == ["log", "linear", "linear", "linear"]


def test_each_training_has_a_look_of_its_own(tmp_path):
    methods = ("vote-alltoall", "gloo", "vote-alltoall", "vote-server", "vote-alltoall", "gloo")
    trainings = [read(kept_log(tmp_path / str(at), lines(method=method))) for at, method in enumerate(methods)]
    looks = training_charts.styles(trainings)
    assert len({(look["color"], look["marker"]) for look in looks}) == len(looks)
    assert len({(look["color"], look["linestyle"]) for look in looks}) == len(looks)
    texts = training_charts.curves(trainings, "epochs").legends[0].get_texts()
    assert [text.get_text() for text in texts][1::4] == ["gloo sgd, 2 ranks: 1", "gloo sgd, 2 ranks: 5"]


def test_figures_are_written_the_same_each_time(log, tmp_path, capsys):
    for folder in ("one", "two"):
        said(capsys, log, "--figures", tmp_path / folder)
    written = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert set(written) == {f"training-{over}{suffix}" for over in training_charts.AXES for suffix in (".svg", ".png")}
    assert written == {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()}
    for name, content in written.items():
        if name.endswith(".svg"):
            ET.fromstring(content)  # noqa: S314


def test_the_table_alone_loads_nothing_slow(log):
    skip_if_quick()
    done = report_alone(log)
    assert done.stdout.splitlines()[-1].split() == ["code", "0"]


def test_names_in_a_log_are_text_and_no_markup(tmp_path, capsys):
    path = kept_log(tmp_path / HOSTILE.replace("/", ""), lines(model=HOSTILE, method=HOSTILE, data="$\\frac$"))
    page = tmp_path / "page.html"
    said(capsys, path, "--html", page)
    assert "<script" not in page.read_text()
    assert page.read_text().count("&lt;script&gt;") > 4


def test_a_browser_shows_the_page(log, tmp_path, capsys):
    skip_if_quick()
    if reason := browser.lacking():
        pytest.skip(f"no headless browser: {reason}")
    other = kept_log(tmp_path / "b", lines(method="gloo", lr=0.3), tail="{")
    page = tmp_path / "page.html"
    said(capsys, log, other, "--html", page)
    (part,) = training_table.parts([read(log), read(other)])
    for width, seen in zip((1280, 390), browser.look(tmp_path, [(page, 1280), (page, 390)]), strict=True):
        assert seen["complaints"] == seen["fetched"] == []
        assert (seen["active"], seen["width"]) == (0, width)
        assert [[cell.replace("\n", " ") for cell in row] for row in seen["tables"][0]] == [part.headers, *part.cells]
        assert len(seen["charts"]) == 3
        assert all(breadth > 300 and height > 150 for breadth, height in seen["charts"])
        assert "Warning: b: the last line is half-written" in seen["text"]
        assert "lr: 0.1 (a), 0.3 (b)" in seen["text"]
