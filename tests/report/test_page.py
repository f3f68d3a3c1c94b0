import html
import re

import browser
import pytest
from made import made_run, newest, redrawn

from mpisign.report import charts, looks, page, records, table
from mpisign.report.answer import answer_line
from mpisign.report.notes import not_run, remarks
from mpisign.report.summary import summarize

HOSTILE = '<script>alert("$x$")</script>'


def drawn_page(run, path):
    """The page of a run, on the disk."""
    summary = summarize(run)
    svgs = {chart: charts.pictures(draw, [".svg"])[".svg"] for chart, draw in charts.drawings(summary).items()}
    path.write_text(page.render({HOSTILE: summary}, {HOSTILE: svgs}))
    return path


def undrawn_page(*runs):
    """The page of runs without their charts: the runs are called 0, 1, 2."""
    summaries = {str(number): summarize(run) for number, run in enumerate(runs)}
    return page.render(summaries, {name: {} for name in summaries})


def box(text):
    """The first box of a page: its class and what it says."""
    verdict, inside = re.search(r'<div class="answer (\w+)">(.*?)</div>', text, re.S).groups()
    return verdict, html.unescape(re.sub(r"<[^>]+>", "", inside))


def with_wrong(run, method="vote-alltoall"):
    """The run, with five wrong coordinates in an exchange of the method."""
    next(line for line in run.exchange if line["method"] == method)["wrong"] = 5
    return run


def without(run, method):
    """The run without one of its methods."""
    run.head["methods"].remove(method)
    run.samples = [line for line in run.samples if line.get("method") != method]
    return run


def grown(run, others):
    """The run with other methods too, given with those whose samples they have."""
    run.head["methods"] += others
    for facts in (run.head["kinds"], *run.head["traffic"].values()):
        facts |= {name: facts[like] for name, like in others.items()}
    lines = run.exchange
    for name, like in others.items():
        run.samples += [line | {"method": name} for line in lines if line["method"] == like]
    return run


def apart(run):
    """The run, at whose end the replicas differed."""
    run.end["replicas_identical"] = False
    return run


def at_the_ceiling(run):
    """The run in which sending nothing takes longest, as noise may have it."""
    for line in run.exchange:
        line["seconds"] *= 1e5 if line["method"] == "none" else 1
    return run


ANSWERS = {
    "faster": (made_run(), "Yes", ["(vote-alltoall), once backward is done, an iteration", "(gloo) 18.06 ms",
                                   "1.50 times as fast, pair by pair (between 1.50 and 1.50 with 95 % confidence)"]),
    "slower": (made_run(slow=6), "No", ["22.08 ms", "it is slower, 0.82 times as fast"]),
    "indistinguishable": (made_run(slow=4), "Can't tell", ["may be chance", "1.00 times as fast", "more iterations"]),
    "few": (made_run(iterations=3), "Can't tell", ["too few samples", "To find out: more iterations, at least 7."]),
    "wrong": (with_wrong(made_run()), "Wrong results", ["vote-alltoall (up to 5 coordinates in an exchange)"]),
    "none": (without(made_run(), "vote-alltoall"), "No answer", ["to tell needs a vote and a rival"]),
    "noise": (at_the_ceiling(made_run()), "Can't tell", ["neither takes longer than sending nothing"]),
}  # fmt: skip


@pytest.mark.parametrize("verdict", ANSWERS)
def test_the_box_on_top_says_in_words_whether_the_vote_pays(verdict):
    run, word, words = ANSWERS[verdict]
    text = undrawn_page(run)
    assert text.index("<h1>") < text.index('class="answer') < text.index("<table")
    found, said = box(text)
    assert found == verdict
    assert said.strip().startswith(f"{word}: ")
    assert all(one in said for one in words), said
    assert f".{verdict}" in text[: text.index("</style>")]


def test_a_sweep_is_answered_by_size_and_lists_no_model():
    text = undrawn_page(made_run(sizes=(1024, 2**20)))
    verdict, said = box(text)
    assert verdict == "faster"
    assert "Yes: at every size measured, 1K to 1M, the fastest vote is faster than the fastest rival." in said
    assert "Bare vectors of 1K to 1M bytes: no model was trained." in said
    for slow, word in ((8, "No: "), (4, "Can't tell: ")):
        assert box(undrawn_page(made_run(sizes=(1024, 2**20), slow=slow)))[1].strip().startswith(word)
    assert box(undrawn_page(made_run(sizes=(1024,), iterations=3)))[0] == "few"
    assert not any(f">{name}<" in text for name in ("model", "batch_size", "image_size", "data", "schedule"))
    assert ">model<" in undrawn_page(made_run())


def test_a_wrong_result_comes_first_and_the_others_are_still_compared():
    run = grown(made_run(iterations=20), {"bf16": "gloo", "vote-server": "vote-alltoall"})
    verdict, said = box(undrawn_page(with_wrong(run)))
    assert verdict == "wrong"
    assert "Of the others: Yes: with the fastest one-bit exchange (vote-server)" in said
    verdict, said = box(undrawn_page(apart(made_run())))
    assert verdict == "wrong"
    assert "nothing in this record is to be believed" in said
    assert "Of the others" not in said


LIMITS = {
    "don't report these times as a cluster's (2 cores for 8 ranks)": {"ranks": 8, "ranks_per_core": 4.0},
    "2 cores for 4 ranks of a node": {"ranks": 8, "nodes": 2, "ranks_per_core": 2.0},
    "1 GPU for 2 ranks: don't report": {"gpus": 1, "device_memory_fault": None},
    "ranks are not bound to cores": {"bound": False},
    "One machine: nothing went over a network": {},
}


@pytest.mark.parametrize("said", LIMITS)
def test_what_limits_the_answer_is_in_its_box(said):
    run = redrawn(made_run(iterations=3), **LIMITS[said])
    _, inside = box(undrawn_page(run))
    assert said in inside
    warnings = [remark.text for remark in remarks(summarize(run)) if remark.warning]
    assert any("samples" in warning for warning in warnings)
    assert all(warning in inside for warning in warnings)
    assert inside.count("Warning:") == len(warnings) + bool(LIMITS[said].get("gpus"))


def test_the_box_claims_no_more_than_was_run():
    assert "Made-up pictures" in box(undrawn_page(made_run()))[1]
    assert "Made-up" not in box(undrawn_page(redrawn(made_run(), data="photos")))[1]
    assert "One machine" not in box(undrawn_page(redrawn(made_run(), nodes=2)))[1]
    assert "One rank" in box(undrawn_page(redrawn(made_run(), ranks=1)))[1]
    assert "not of a training" not in box(undrawn_page(made_run(sizes=(1024,))))[1]


def test_of_several_records_the_answers_are_on_top():
    text = undrawn_page(ANSWERS["faster"][0], ANSWERS["slower"][0])
    links = re.findall(r'<li class="(\w+)"><a href="#record-(\d)">(\d)</a>: <strong>([^<]+)</strong>', text)
    assert links == [("faster", "1", "0", "Yes"), ("slower", "2", "1", "No")]
    assert text.index("</nav>") < text.index('class="answer')


def test_the_words_are_explained():
    terms = re.findall(r"<dt[^>]*>([^<]+)</dt><dd>[^<]", undrawn_page(made_run()))
    assert set(terms) > {"vote", "ceiling", "rival", "busiest rank", "wrong", "imbalance", "colours"}
    assert {"gradient, step", "coding, wire", "rival's exchange, other"} <= set(terms)


def test_a_page_is_one_file_in_the_colours_of_the_charts(tmp_path):
    text = drawn_page(made_run(), tmp_path / "p.html").read_text()
    assert not re.findall(r"""(?:src|href|action)=["'](?!#)|url\((?!#)|@import""", text)
    assert all(f"{kind}: {colour}" in text for kind, colour in looks.KINDS.items() if kind != "ceiling")


def test_names_in_a_record_are_text_and_no_markup(tmp_path):
    run = redrawn(made_run(), model=HOSTILE, device=HOSTILE)
    text = drawn_page(run, tmp_path / "p.html").read_text()
    assert "<script" not in text
    assert text.count("&lt;script&gt;") > 4


@pytest.fixture(scope="module")
def window():
    if reason := browser.lacking():
        pytest.skip(f"no headless browser: {reason}")


PAGES = ("resnet50-8-ranks", "resnet50-overlap-4-ranks", "sweep-4-ranks", "hostile")
WIDTHS = (1366, 1280, 390)


@pytest.fixture(scope="module")
def shown(window, tmp_path_factory):
    """Each page's run, and what a browser shows of it at each width: one browser for all of them."""
    folder = tmp_path_factory.mktemp("pages")
    runs = {name: records.read(newest(name)) for name in PAGES[:-1]}
    runs["hostile"] = redrawn(made_run(), model=HOSTILE, device=HOSTILE)
    pages = {name: drawn_page(run, folder / f"{name}.html") for name, run in runs.items()}
    seen = iter(browser.look(folder, [(page, width) for page in pages.values() for width in WIDTHS]))
    return {name: (run, {width: next(seen) for width in WIDTHS}) for name, run in runs.items()}


@pytest.mark.parametrize("name", PAGES)
def test_a_browser_shows_the_page(shown, name):
    run, at_widths = shown[name]
    summary = summarize(run)
    for width, seen in at_widths.items():
        assert seen["complaints"] == seen["fetched"] == []
        assert seen["active"] == 0
        assert seen["width"] == seen["unfolded"] == width  # what is wider scrolls in a frame of its own
        assert width < 1366 or not seen["scrolled"]
        assert len(seen["charts"]) == len(charts.drawings(summary))
        assert all(breadth > 300 and height > 150 for breadth, height in seen["charts"])
        assert min(seen["shapes"]) > 100
        wide = table.parts(summary, wide=True)[summary.is_sweep :]
        expected = [[part.headers, *part.cells] for part in (*table.parts(summary), *wide)]
        tables = [[[cell.replace("\n", " ") for cell in row] for row in cells] for cells in seen["tables"]]
        assert tables[:-3] == expected
        assert {row[0]: row[1] for row in seen["tables"][-2]}["device"] == run.head["machine"]["device"]
        assert all(remark.text in seen["text"] for remark in remarks(summary))
        assert all(one in seen["text"] for one in not_run(summary))
        assert table.title(run) in seen["text"]
        assert answer_line(summary).removeprefix("Does it pay here? ") in seen["text"]


PAPER = 979  # pixels between the margins of a letter on its side, the narrower of the usual papers


def test_no_column_is_cut_on_paper(window, tmp_path):
    """Where the rules for paper hold on the screen too, what reaches beyond it makes the page wider."""
    runs = [records.read(newest(name)) for name in PAGES[:-1]]
    many = {f"vote-hierarchical-{number}": "vote-alltoall" for number in range(20)}
    runs.append(grown(made_run(sizes=(1024, 4096)), many))
    pages = [drawn_page(run, tmp_path / f"{number}.html") for number, run in enumerate(runs)]
    for path in pages:
        text = path.read_text()
        assert text.count("@media print") == 1
        path.write_text(text.replace("@media print", "@media all"))
    seen = browser.look(tmp_path, [(path, PAPER) for path in pages])
    assert [each["width"] for each in seen] == [PAPER] * 4


def test_the_charts_are_really_painted(window, tmp_path):
    from matplotlib.colors import to_rgb
    from matplotlib.image import imread

    picture = imread(browser.photograph(tmp_path, drawn_page(made_run(), tmp_path / "page.html"), 1280, 2400))
    assert picture.shape[:2] == (2400, 1280)
    for colour in (*looks.KINDS.values(), looks.PHASES["gradient"]):
        assert (abs(picture[..., :3] - to_rgb(colour)).max(-1) < 0.01).sum() > 500


def test_a_page_that_fetches_or_runs_something_is_found_out(window, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text('<script>nothing()</script><img src="http://127.0.0.1:9/a.png">')
    (seen,) = browser.look(tmp_path, [(bad, 800)])
    assert seen["fetched"] == ["http://127.0.0.1:9/a.png"]
    assert seen["active"] == 2
    assert any("nothing is not defined" in line for line in seen["complaints"])


def test_without_a_browser_the_reason_is_told(monkeypatch):
    monkeypatch.setattr(browser.shutil, "which", lambda name: None)
    assert "chromium-headless-shell" in browser.lacking()
