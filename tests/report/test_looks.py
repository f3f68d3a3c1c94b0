from itertools import combinations

import numpy as np
import pytest
from made import made_run

from mpisign.methods.table import METHODS
from mpisign.network.cost import FORMULAS
from mpisign.report import charts, looks, projection_charts
from mpisign.report.summary import summarize

KINDS = {name: method.kind for name, method in METHODS.items()}


def hue(colour):
    """The hue of a colour, from 0 to 1: red, green, blue."""
    from matplotlib.colors import rgb_to_hsv, to_rgb

    return rgb_to_hsv(to_rgb(colour))[0]


def test_votes_have_cool_colours_and_rivals_warm_ones():
    style = looks.looks(KINDS)
    for method, kind in KINDS.items():
        cool = 0.35 < hue(style[method]["color"]) < 0.8
        if kind != "ceiling":
            assert cool == (kind == "vote"), method
            assert (0.35 < hue(looks.KINDS[kind]) < 0.8) == cool
    parts = set(looks.PHASES) - {looks.RIVAL, looks.REST, "gradient", "step", "imbalance", "other"}
    assert all(0.3 < hue(looks.PHASES[part]) < 0.85 for part in parts)  # they are all of a vote


def test_each_method_has_a_look_of_its_own_whatever_else_ran():
    style = looks.looks(KINDS)
    seen = {tuple(map(str, sorted(look.items()))) for look in style.values()}
    assert len(seen) == len(style)
    assert looks.UNKNOWN not in {look["marker"] for look in style.values()}
    for method, kind in KINDS.items():
        assert looks.looks({method: kind}) == {method: style[method]}
    assert style["powersgd-2"]["color"] == style["powersgd-4"]["color"] != style["mpi"]["color"]
    assert style["vote-alltoall"]["color"] == style["vote-alltoall-gloo"]["color"] != style["vote-server"]["color"]
    assert style["vote-alltoall"]["linestyle"] != style["vote-alltoall-gloo"]["linestyle"]
    assert looks.looks({"of old": "rival"})["of old"]["color"] == looks.KINDS["rival"]


def test_a_colour_means_one_thing_from_one_chart_to_the_other():
    families = {colour for colour, _ in looks.FAMILIES.values()}
    assert len(families) == len(looks.FAMILIES)
    assert families & set(looks.KINDS.values()) == {looks.GREY}  # `none` is the only ceiling
    assert len(set(looks.PHASES.values())) == len(looks.PHASES)
    assert not families & set(looks.PHASES.values())
    assert {name for name, colour in looks.PHASES.items() if colour in looks.KINDS.values()} == {
        looks.EXPOSED, looks.RIVAL}  # fmt: skip


def test_each_legend_gives_a_colour_one_name_alone():
    for schedule in ("serial", "overlap"):
        summary = summarize(made_run(schedule=schedule))
        figure = charts.stacked(summary, summary.breakdown)
        (legend,) = figure.legends
        colours = [patch.get_facecolor() for patch in legend.get_patches()]
        assert len(set(colours)) == len(colours) > 4


def test_projections_draw_methods_as_other_charts_do():
    assert {name: look["color"] for name, look in looks.looks(KINDS).items() if name in FORMULAS} == (
        projection_charts.COLOURS
    )


# What people see who lack one kind of cone: Machado, Oliveira and Fernandes, IEEE TVCG 15 (2009), severity 1.
SIGHTS = {
    "all cones": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(linear):
    """CIE L*a*b* of linear sRGB, in which a distance of 2 or 3 can just be seen."""
    from_rgb = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(from_rgb @ np.clip(linear, 0, 1) / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIGHTS)
def test_the_colours_stay_apart_for_the_colour_blind(sight):
    from matplotlib.colors import to_rgb

    families = [colour for colour, _ in looks.FAMILIES.values()]
    palette = sorted({*looks.KINDS.values(), *families, *looks.PHASES.values()})
    linear = [
        np.array([((c + 0.055) / 1.055) ** 2.4 if c > 0.04045 else c / 12.92 for c in to_rgb(colour)])
        for colour in palette
    ]
    seen = [lab(SIGHTS[sight] @ colour) for colour in linear]
    assert min(np.linalg.norm(one - other) for one, other in combinations(seen, 2)) > 10
