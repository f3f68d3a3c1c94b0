"""Each habit of the table learns as well as its plain twin, or is refused by a line that names the cure."""

import json

import pytest
from launch import ROOT, run, skip_if_quick
from table import HABITS

RANKS = 3


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """Try all habits in one start of the ranks."""
    skip_if_quick()
    file = tmp_path_factory.mktemp("habits") / "tried.jsonl"
    ended = run(RANKS, str(ROOT / "tests" / "habits" / "ranks.py"), str(file), timeout=600)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return {line["name"]: line for line in lines}, ended


def outcome(tried, name):
    found, ended = tried
    assert name in found, f"the ranks ended before, {ended.returncode}: {ended.stderr[-4000:]}"
    return found[name].get("plain"), found[name]["voted"]


@pytest.mark.parametrize("habit", [habit for habit in HABITS if habit.verdict == "works"], ids=lambda habit: habit.name)
def test_it_learns_as_its_plain_twin(tried, habit):
    plain, voted = outcome(tried, habit.name)
    assert [rank["raised"] for rank in plain + voted] == [""] * 2 * RANKS
    assert plain[0]["loss"] < 0.15, "its plain twin does not learn"
    for rank in voted:
        assert rank["loss"] <= 2 * plain[0]["loss"] + 0.02
    assert len({rank["digest"] for rank in voted if rank["digest"]}) == 1, "the replicas differ"
    warned = " ".join(text for rank in voted for text in rank["warned"] if "mpisign" in text)
    assert habit.says.search(warned) if habit.says else not warned


@pytest.mark.parametrize(
    "habit", [habit for habit in HABITS if habit.verdict == "refused"], ids=lambda habit: habit.name
)
def test_it_is_refused_on_all_ranks(tried, habit):
    for rank in outcome(tried, habit.name)[1]:
        assert habit.says.search(rank["raised"]), rank["raised"] or "nothing was raised"
        assert "\n" not in rank["raised"].strip()


@pytest.mark.parametrize("habit", [habit for habit in HABITS if habit.verdict == "does not apply"],
                         ids=lambda habit: habit.name)  # fmt: skip
def test_torch_itself_refuses_it(tried, habit):
    for rank in outcome(tried, habit.name)[1]:
        assert habit.says.search(rank["raised"]), rank["raised"] or "nothing was raised"
        assert "mpisign" not in rank["raised"]
