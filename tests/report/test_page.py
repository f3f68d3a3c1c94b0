import browser
import pytest
from made import made_run, newest, redrawn

from mpisign.report import charts, looks, page, records, table
from mpisign.report.notes import remarks
from mpisign.report.summary import summarize

HOSTILE = '<script>alert("$x$")</script>'


def drawn_page(run, path):
    """The page of a run, on the disk."""
    summary = summarize(run)
    svgs = {chart: charts.pictures(draw, [".svg"])[".svg"] for chart, draw in charts.drawings(summary).items()}
    path.write_text(page.render({HOSTILE: summary}, {HOSTILE: svgs}))
    return path


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
WIDTHS = (1280, 390)


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
        assert seen["width"] == width  # what is wider scrolls in a frame of its own
        assert len(seen["charts"]) == len(charts.drawings(summary))
        assert all(breadth > 300 and height > 150 for breadth, height in seen["charts"])
        assert min(seen["shapes"]) > 100
        expected = [[part.headers, *part.cells] for part in table.parts(summary)]
        tables = [[[cell.replace("\n", " ") for cell in row] for row in cells] for cells in seen["tables"]]
        assert tables[:-3] == expected
        assert {row[0]: row[1] for row in seen["tables"][-2]}["device"] == run.head["machine"]["device"]
        assert all(remark.text in seen["text"] for remark in remarks(summary))
        assert table.title(run) in seen["text"]
        assert table.answer_line(summary) in seen["text"]


def test_the_charts_are_really_painted(window, tmp_path):
    from matplotlib.colors import to_rgb
    from matplotlib.image import imread

    picture = imread(browser.photograph(tmp_path, drawn_page(made_run(), tmp_path / "page.html"), 1280, 2400))
    assert picture.shape[:2] == (2400, 1280)
    for colour in (looks.COOL[0], looks.WARM[0], looks.PHASES["compute"]):
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
