"""What docs/ points at is there."""

import re

import pytest
from launch import ROOT

from mpisign.report import columns

MEASURING = (ROOT / "docs" / "measuring.md").read_text()


def test_each_rule_has_its_row_and_says_how_far_it_is_kept():
    found = re.findall(r"^\| (\d+) \| [^|]+ \| (kept|partly|not kept) \| \S", MEASURING, re.M)
    assert [int(number) for number, _ in found] == list(range(1, 13))


@pytest.mark.parametrize(("path", "name"), re.findall(r"`([\w/]+\.py)`(?:, `(\w+)`)?", MEASURING))
def test_what_it_points_at_is_there(path, name):
    source = (ROOT / path).read_text()
    assert not name or re.search(rf"^ *(def {name}\(|{name}\b.* = )", source, re.M)


def test_the_columns_it_names_are_in_a_table():
    headers = " ".join(column for shown in columns.WIDE.values() for column in shown)
    named = re.findall(r'"([^"]+)"', " ".join(re.findall(r"\(columns? ([^)]*)\)", MEASURING)))
    assert len(named) >= 6
    assert all(name in headers for name in named)
