"""The log: it keeps the history of a training's starts, and the terminal's line of an epoch says what it counts."""

import json

import pytest

from mpisign.train.log import FORMAT, Log, Progress, misfit

HEAD = {
    "type": "train", "format": FORMAT, "created": "then", "config": {"lr": 0.1, "epochs": 2, "data": "photos"},
    "machine": {"ranks": 2, "commit": "a"}, "pictures": {"train_pictures": 64},
}  # fmt: skip


def head(**facts):
    """Return the first line that a start with other facts would write."""
    parts = {part: {name: facts.get(name, fact) for name, fact in HEAD[part].items()}
             for part in ("config", "machine", "pictures")}  # fmt: skip
    return HEAD | {"created": "now"} | parts


def begin(path, *, checkpoint=None, epochs=0, steps=0, **facts):
    """Start a training that takes two steps an epoch: two whole epochs and one step of the next."""
    log = Log(path)
    log.begin(head(**facts), checkpoint=checkpoint, epochs=epochs, steps=steps)
    for step in range(steps + 1, steps + 6):
        epoch = (step + 1) // 2
        log.add({"type": "iteration", "step": step, "epoch": epoch})
        if step % 2 == 0:
            log.add({"type": "epoch", "epoch": epoch, "step": step})
    log.flush()


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def of(path, kind):
    return [line for line in lines(path) if line["type"] == kind]


def settings(path):
    """Return for each step the rate and the ranks that its line stands under, read as the log's docstring says."""
    found, facts = {}, {}
    for line in lines(path):
        if line["type"] == "train":
            facts |= line["config"] | line["machine"]
        elif line["type"] == "start":
            facts |= {name: now for name, (_, now) in line["changed"].items()}
        elif line["type"] == "iteration":
            found[line["step"]] = facts["lr"], facts["ranks"]
    return found


def test_the_first_line_stays_and_each_start_adds_what_changed(tmp_path):
    path = tmp_path / "run" / "log.jsonl"
    begin(path)
    first = path.read_text().splitlines()[0]
    begin(path, checkpoint="checkpoint-00000005", epochs=2, steps=5, lr=0.2, ranks=3)
    begin(path, checkpoint="checkpoint-00000010", epochs=5, steps=10, lr=0.2, ranks=3, commit="b", train_pictures=60)
    assert path.read_text().splitlines()[0] == first
    assert [line["changed"] for line in of(path, "start")] == [
        {}, {"lr": [0.1, 0.2], "ranks": [2, 3]}, {"commit": ["a", "b"], "train_pictures": [64, 60]},
    ]  # fmt: skip
    assert [(line["checkpoint"], line["epochs"], line["steps"]) for line in of(path, "start")] == [
        (None, 0, 0), ("checkpoint-00000005", 2, 5), ("checkpoint-00000010", 5, 10),
    ]  # fmt: skip
    assert [line["step"] for line in of(path, "iteration")] == list(range(1, 16))
    assert [line["epoch"] for line in of(path, "epoch")] == list(range(1, 8))
    assert settings(path) == dict.fromkeys(range(1, 6), (0.1, 2)) | dict.fromkeys(range(6, 16), (0.2, 3))


def test_what_came_after_the_checkpoint_is_cut_but_for_starts(tmp_path):
    path = tmp_path / "log.jsonl"
    begin(path)
    begin(path, checkpoint="checkpoint-00000005", epochs=2, steps=5, lr=0.2)
    with path.open("a") as file:
        file.write('{"type": "iteration", "st')  # a job was killed
    begin(path, checkpoint="checkpoint-00000003", epochs=1, steps=3, lr=0.1)
    kinds = [line["type"] for line in lines(path)]
    assert kinds[:8] == ["train", "start", "iteration", "iteration", "epoch", "iteration", "start", "start"]
    assert [line["changed"] for line in of(path, "start")] == [{}, {"lr": [0.1, 0.2]}, {"lr": [0.2, 0.1]}]
    assert [line["step"] for line in of(path, "iteration")] == list(range(1, 9))
    assert [line["epoch"] for line in of(path, "epoch")] == list(range(1, 5))
    assert set(settings(path).values()) == {(0.1, 2)}
    assert [file.name for file in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_start_from_nothing_keeps_the_history_too(tmp_path):
    """As when a job is put back before its first checkpoint."""
    path = tmp_path / "log.jsonl"
    begin(path)
    begin(path, ranks=4)
    assert [line["changed"] for line in of(path, "start")] == [{}, {"ranks": [2, 4]}]
    assert set(settings(path).values()) == {(0.1, 4)}


def test_a_lost_log_begins_anew(tmp_path):
    path = tmp_path / "log.jsonl"
    begin(path, checkpoint="checkpoint-00000005", epochs=2, steps=5, lr=0.2)
    assert lines(path)[0] == head(lr=0.2)
    assert [line["changed"] for line in of(path, "start")] == [{}]
    assert [line["step"] for line in of(path, "iteration")] == list(range(6, 11))


def test_a_log_of_another_format_is_refused(tmp_path):
    path = tmp_path / "log.jsonl"
    assert misfit(path) is None
    begin(path)
    assert misfit(path) is None
    path.write_text(json.dumps(HEAD | {"format": 1}) + "\n")
    assert misfit(path) == f"{path} has format 1, not {FORMAT}; move it away, and a new log is begun"
    path.write_bytes(b"\xff\x00no log\n")
    assert misfit(path) is None  # its lines are dropped as torn ones are
    begin(path)
    assert lines(path)[0] == head()


HOSTILE = (
    "", "null", "3", "[]", '"train"', "{", "[" * 10**5, '{"a":' * 10**5, '{"type": []}', '{"type": {"train": 1}}',
    '{"type": "iteration"}', '{"type": "iteration", "step": "3"}', '{"type": "iteration", "step": null}',
    '{"type": "iteration", "step": []}', '{"type": "iteration", "step": 1e999}', '{"type": "epoch"}',
    '{"type": "epoch", "epoch": {}}', '{"type": "start"}', '{"type": "start", "changed": []}',
    '{"type": "start", "changed": {"lr": 3}}', '{"type": "start", "changed": {"lr": [1, 2, 3]}}',
    '{"type": "train"}', '{"type": "train", "config": 1, "machine": {}, "pictures": {}}',
    '{"type": "train", "config": {}, "machine": null, "pictures": {}}', "\0\0\0", "\ufffd" * 9, "NaN",
)  # fmt: skip


def test_lines_that_no_training_writes_are_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    begin(path)
    whole = lines(path)
    for number, hostile in enumerate(HOSTILE):
        path.write_text("".join(f"{json.dumps(line)}\n{hostile}\n" for line in whole))
        assert misfit(path) is None
        Log(path).begin(head(), checkpoint="checkpoint-00000005", epochs=2, steps=5)
        assert lines(path)[:-1] == whole, number
        path.write_text("".join(f"{hostile}\n{json.dumps(line)}\n" for line in whole))
        misfit(path)  # may be refused, but in a line
        Log(path).begin(head(), checkpoint="checkpoint-00000005", epochs=2, steps=5)
        assert lines(path)[:-1] == whole, number


EPOCH = {"type": "epoch", "epoch": 1, "step": 8, "loss": 0.5, "train_top1": 0.75, "validation_loss": 0.25, "top1": 0.5,
         "validated": 16, "seconds": 2.0, "images_per_s": 64.0, "skipped": 0}  # fmt: skip
COUNTS = "64 images/s (training, all ranks, with loading), 2 s"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, f"validation loss 0.2500, top-1 50.00%; {COUNTS}"),
        ({"top5": 0.875}, f"validation loss 0.2500, top-1 50.00%, top-5 87.50%; {COUNTS}"),
        ({"skipped": 3}, f"validation loss 0.2500, top-1 50.00%; {COUNTS}, 3 pictures left out"),
    ],
    ids=["few classes", "many classes", "skipped"],
)
def test_the_line_of_an_epoch_says_how_good_the_training_is_and_what_it_counts(tmp_path, capsys, more, said):
    path = tmp_path / "log.jsonl"
    begin(path)
    progress = Progress(Log(path), steps=8, epochs=2)
    progress.note(EPOCH | more)
    progress.close()
    assert capsys.readouterr().out == f"epoch 1/2: training loss 0.5000, top-1 75.00%; {said}\n"
    assert lines(path)[-1] == EPOCH | more
