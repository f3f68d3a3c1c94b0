"""`report --project`: what it prints, draws and refuses."""

import dataclasses
import math
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from launch import ROOT
from made import KNOWN, SIZES, kept, made_run, made_sweep

from mpisign.network import cost
from mpisign.network.cost import GBIT
from mpisign.report import __main__ as report
from mpisign.report import charts, projection, projection_charts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records: sweeps of known rates among 2 and 4 ranks, and a run of a model of 100 coordinates and 10 ms."""
    folder = tmp_path_factory.mktemp("records")
    for ranks in (2, 4):
        kept(made_sweep(ranks), folder / f"sweep-{ranks}.jsonl")
    for name in ("model", "another"):
        kept(made_run(), folder / f"{name}.jsonl")
    kept(made_sweep(sizes=SIZES[:2]), folder / "short.jsonl")
    kept(made_sweep(names=("vote-alltoall", "fp16")), folder / "no-rival.jsonl")
    return folder


def project(folder, out, *arguments, files=("sweep-2", "sweep-4")):
    paths = [str(folder / f"{name}.jsonl") for name in files]
    return report.main([*paths, "--project", str(out), "--format", "table", *arguments])


@pytest.fixture
def undrawn(monkeypatch):
    """For what is printed alone."""
    monkeypatch.setattr(charts, "write", lambda stem, draw: [])


def test_it_draws_the_same_to_the_byte_and_prints_the_break_even_bandwidths(folder, tmp_path, capsys):
    arguments = ("--compute-ms", "300", "--latency-us", "5", "--ranks", "8", "--format", "markdown")
    for name in ("a", "b"):
        assert project(folder, tmp_path / "new" / name, *arguments) == 0
    out, err = capsys.readouterr()
    assert [path.name for path in sorted((tmp_path / "new").iterdir())] == ["a.png", "a.svg", "b.png", "b.svg"]
    for suffix in ("png", "svg"):
        assert (tmp_path / "new" / f"a.{suffix}").read_bytes() == (tmp_path / "new" / f"b.{suffix}").read_bytes()
    assert str(tmp_path / "new" / "a.svg") in err
    table = {row.split("|")[1].strip(): row.split("|")[2:-1] for row in out.splitlines() if row.startswith("|")}
    assert set(table) >= {str(P) for P in projection.RANKS} | set(cost.FORMULAS)
    vote, rival = (
        cost.curve(name, 64, d=projection.RESNET50_COORDINATES, latency=5e-6,
                   rates=KNOWN._replace(gamma=gamma, delta=delta, fixed=fixed))
        for name, gamma, delta, fixed in (("vote-alltoall", *KNOWN[2:]), ("mpi", 0, 0, 0))
    )  # fmt: skip
    assert float(table["64"][1]) == pytest.approx(cost.break_even([vote], [rival]) / GBIT, rel=0.01)
    assert float(table["64"][3]) == pytest.approx(cost.break_even([vote], [rival], hidden_s=0.2) / GBIT, rel=0.01)
    assert [float(cell) for cell in table["vote-alltoall"][:5]] == [20, 10, 0.5, 3, 40]  # KNOWN, in the table's units
    assert table["vote-alltoall"][-1].strip() == "0 %, at worst 0 %"


def test_the_chart_says_what_it_rests_on(folder, tmp_path):
    assert project(folder, tmp_path / "p", files=("model", "sweep-4")) == 0
    drawn = (tmp_path / "p.svg").read_text()
    text = " ".join(re.findall(r"<!-- (.*?) -->", drawn))  # letters are drawn; what they say stands beside them
    assert "100 coordinates; compute 10.04 ms, of which backward 5.018 ms (a run of tiny)." in text
    assert "latency as fitted, method by method" in text
    assert "Fitted from sweeps of 4 ranks on X." in text
    assert "WARNING" not in text
    for name in cost.FORMULAS:
        assert name in text
    assert text.count("0 %, at worst 0 %") >= len(cost.FORMULAS)
    assert re.search(
        r"best vote (never|always) pays against (fp32|bf16)|pays up to \S+ Gbit/s against (fp32|bf16)", text
    )


def test_options_go_before_the_models_run(folder, tmp_path, capsys, undrawn):
    assert project(folder, tmp_path / "p", "--compute-ms", "20", "--coordinates", "777",
                   files=("model", "sweep-4")) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "777 coordinates; compute 20 ms, of which backward 10 ms (compute as given, a run of tiny)." in said


def test_only_the_methods_asked_for(folder, tmp_path, capsys, undrawn):
    assert project(folder, tmp_path / "p", "--compute-ms", "1", "--project-methods", "gloo,vote-server") == 0
    said = capsys.readouterr().out
    assert "gloo" in said
    assert "vote-alltoall" not in said
    assert "bf16" not in said


@pytest.mark.parametrize(
    ("files", "arguments", "said"),
    [
        (["model"], ["--compute-ms", "1"], "model.jsonl: no sweep over sizes"),
        (["nowhere"], [], "nowhere.jsonl"),
        (["sweep-2", "model", "another"], [], "another.jsonl: --project takes one run of a model at most"),
        (["short"], ["--compute-ms", "1"], "mpi: too few sizes for a fit: 2"),
        (["no-rival"], ["--compute-ms", "1"], "no vote with an all-reduce in fp32 or bf16: only fp16, vote-alltoall"),
        (["sweep-2"], [], "--project needs --compute-ms, or a run of a model beside the sweeps"),
        (
            ["sweep-2"],
            ["--compute-ms", "1", "--project-methods", "votes"],
            "the model knows no 'votes', choose from mpi",
        ),
        (["no-rival"], ["--compute-ms", "1", "--project-methods", "mpi"], "no sweep given has mpi"),
        (["sweep-2"], ["--compute-ms", "1", "--ranks", "0"], "--ranks: must be at least 1, got 0"),
        (["sweep-2"], ["--compute-ms", "1", "--coordinates", "-1"], "--coordinates: must be at least 1, got -1"),
        (["sweep-2"], ["--compute-ms", "1", "--format", "csv"], "--project prints a table or markdown"),
    ],
)
def test_what_cannot_be_projected_is_refused_in_one_line(files, arguments, said, folder, tmp_path, capsys):
    assert project(folder, tmp_path / "p", *arguments, files=files) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_method_that_was_wrong_at_one_size_is_left_out(folder, tmp_path, capsys, undrawn):
    run = made_sweep()
    next(line for line in run.exchange if line["method"] == "vote-alltoall")["wrong"] = 1
    kept(run, tmp_path / "faulty.jsonl")
    (tmp_path / "sweep-2.jsonl").write_bytes((folder / "sweep-2.jsonl").read_bytes())
    both = {"files": ("sweep-2", "faulty")}
    assert project(tmp_path, tmp_path / "p", "--compute-ms", "1", **both) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if "vote-alltoall" in line] == [
        "WARNING: left out, for they had wrong results in a sweep: vote-alltoall."
    ]
    for names, fault in (("vote-alltoall,mpi", "--project-methods: vote-alltoall had wrong results in a sweep"),
                         ("mpi", "only mpi, without vote-alltoall, which had wrong results")):  # fmt: skip
        assert project(tmp_path, tmp_path / "p", "--compute-ms", "1", "--project-methods", names, **both) == 2
        assert fault in capsys.readouterr().err


def zigzag(ranks, factors):
    """A sweep in which methods take so many times as long as the model says at every second size."""
    run = made_sweep(ranks)
    for line in run.exchange:
        if SIZES.index(line["bytes"]) % 2:
            for span in {"seconds", "pack", "vote", "unpack"}.intersection(line):
                line[span] *= factors.get(line["method"], 1)
    return run


def projected(folder, capsys, factors):
    """What is printed of two such sweeps, and the cells of its table of break-evens by its headers and P."""
    for ranks in (2, 4):
        kept(zigzag(ranks, factors), folder / f"sweep-{ranks}.jsonl")
    assert project(folder, folder / "p", "--compute-ms", "300", "--format", "markdown") == 0
    said = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines()
            if line.startswith("| ")]  # fmt: skip
    at = next((i for i, row in enumerate(rows) if row[0] == "P"), None)
    return said, {row[0]: dict(zip(rows[at], row, strict=True)) for row in rows[at:]} if at else {}


ALL = dict.fromkeys(cost.FORMULAS, 1.0)
VOTES = dict.fromkeys(cost.MODELLED_VOTES, 1.0)


def test_break_evens_have_a_band_and_no_more_digits_than_it_allows(tmp_path, capsys, undrawn):
    said, table = projected(tmp_path, capsys, dict.fromkeys(ALL, 1.2))
    for cells in table.values():
        for head, cell in cells.items():
            if head.startswith(("fp32", "bf16")) and cell != head:
                value, low, high = re.fullmatch(r"(\S+) \[(\S+), (\S+)\]", cell).groups()
                assert float(low) <= float(value) <= float(high)
                assert float(low) < float(high)
                assert len(value.replace(".", "").strip("0")) <= (2 if float(high) < 1.9 * float(low) else 3)
    assert "Bands: as if each fit were as far off as it was at worst" in said
    assert "No break-even" not in said


@pytest.mark.parametrize(("off", "refused"), [
    (ALL, {"fp32": "each vote by", "bf16": "bf16-mpi by"}),
    ({"gloo": 1.0}, {"fp32": "gloo by"}),
    (VOTES, {"fp32": "each vote by", "bf16": "each vote by"}),
    ({"fp16": 1.0, "vote-reduce": 1.0}, {}),
])  # fmt: skip
def test_a_fit_that_is_far_off_names_no_break_even_and_says_why(off, refused, tmp_path, capsys, undrawn):
    said, table = projected(tmp_path, capsys, dict.fromkeys(off, 6.0))
    for kind in ("fp32", "bf16"):
        named = [head for head in table.get("64", ()) if head.startswith(kind)]
        lines = [line for line in said.splitlines() if line.startswith(f"No break-even against {kind} is named")]
        assert (len(named), len(lines)) == ((0, 1) if kind in refused else (2, 0))
        assert "the fit was off by more than 50 %" in (lines or ["the fit was off by more than 50 %"])[0]
        assert refused.get(kind, "") in "".join(lines)
    left_out = "Not among the best votes, off by more than 50 %: vote-reduce."
    assert (left_out in said.splitlines()) == ("vote-reduce" in off and "vote-server" not in off)


@pytest.mark.parametrize(("band", "said"), [
    ((12.345, 12.345, 12.345), "12.3"),
    ((12.345, 12.0, 12.5), "12.3 [12, 12.5]"),
    ((12.345, 10.0, 15.0), "12 [10, 15]"),
    ((1234.5, 678.9, 2345.6), "1000 [700, 2000]"),
    ((12.345, 0.0, 15.0), "10 [never, 20]"),
    ((12.345, 10.0, math.inf), "10 [10, always]"),
    ((0.0, 0.0, 0.0), "never pays"),
    ((math.inf, math.inf, math.inf), "always pays"),
    ((0.0, 0.0, 3.21), "never pays [never, 3]"),
])  # fmt: skip
def test_a_band_is_written_with_what_it_allows(band, said):
    assert projection.limit(projection.Band(*band)) == said


def made_with(folder, errors):
    """A projection whose methods were off by so much at worst, of other sizes."""
    paths = [folder / f"sweep-{ranks}.jsonl" for ranks in (2, 4)]
    asked = {"bandwidth": 10.0, "ranks": 16, "latency_us": None, "compute_ms": 300.0, "coordinates": None}
    made = projection.settle(SimpleNamespace(files=paths, project_methods=None, **asked))
    return dataclasses.replace(made, errors=made.errors | {name: cost.Errors([0.0, off], [0.01])
                                                           for name, off in errors.items()})  # fmt: skip


def test_bands_are_drawn_and_what_is_far_off_is_not(folder):
    made = made_with(folder, {"gloo": 0.6, "fp16": 12.47, "vote-reduce": 0.1})
    axes = projection_charts.draw(made).axes[1]
    labels = [label for label in axes.get_legend_handles_labels()[1] if "off by" in label]
    assert labels == ["gloo (off by 60 %)", "fp16 (off by 1247 %): not drawn"]
    assert len(axes.collections) == len(made.rates) - 1
    assert sum(len(line.get_xdata()) > 0 for line in axes.lines) == len(made.rates) - 2
    fast, fitted, slow = (made.curve("vote-reduce", 8, off).seconds(10 * GBIT)
                          for off in (projection.FAST, projection.AS_FITTED, projection.SLOW))  # fmt: skip
    assert (fast, slow) == pytest.approx((fitted / 1.1, fitted / 0.9), rel=1e-6)


def test_a_break_evens_band_is_of_fits_that_are_off_either_way(folder):
    made = made_with(folder, {"mpi": 0.2, "gloo": 0.2, "nccl": 0.2, **dict.fromkeys(VOTES, 0.1)})
    for schedule in projection.SCHEDULES:
        band, hidden = made.break_even("fp32", 16, schedule=schedule), made.hidden(schedule)

        def exchange(name, share):
            fitted = made.curve(name, 16)
            return cost.Curve(fitted.fixed_s * share, fitted.bytes * share)

        for end, vote, rival in ((band.low, 1 / 0.9, 1 / 1.2), (band.high, 1 / 1.1, 1 / 0.8)):
            votes, rivals = ([exchange(name, share) for name in names]
                             for names, share in ((VOTES, vote), (("mpi", "gloo", "nccl"), rival)))  # fmt: skip
            assert end == pytest.approx(cost.break_even(votes, rivals, hidden_s=hidden) / GBIT, rel=1e-6)
        assert band.low < band.value < band.high


def test_where_all_is_far_off_only_the_errors_are_drawn(folder):
    made = made_with(folder, dict.fromkeys(ALL, 1.5))
    figure = projection_charts.draw(made)
    assert len(figure.axes) == 1
    assert "nothing is projected" in figure.get_suptitle()
    assert not any("Bands" in line for line in made.assumptions())
    cells = next(line for line in projection.render(made, "pipe").splitlines() if line.startswith("| vote-alltoall"))
    assert [cell.strip() for cell in cells.split("|")[2:7]] == ["20", "10", "0.5", "3", "40"]


def test_sweeps_of_one_number_of_ranks_say_so(folder, tmp_path, capsys, undrawn):
    for files, told in ((["sweep-4"], True), (["sweep-2", "sweep-4"], False)):
        assert project(folder, tmp_path / "p", "--compute-ms", "1", files=files) == 0
        assert ("another number of ranks was not tried" in capsys.readouterr().out) == told


@pytest.mark.parametrize("argument", [["--bandwidth", "0"], ["--latency-us", "nan"], ["--compute-ms", "-1"]])
def test_numbers_out_of_range_are_refused(argument, folder, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        project(folder, tmp_path / "p", *argument)
    assert "is no finite number above 0" in capsys.readouterr().err


def test_a_figure_that_cannot_be_written_is_refused(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert project(folder, tmp_path / "file" / "p", "--compute-ms", "1") == 2
    assert "file" in capsys.readouterr().err


def test_ranks_that_share_cores_are_warned_of(tmp_path, capsys, undrawn):
    run = made_sweep()
    run.head["machine"]["ranks_per_core"] = 2.0
    kept(run, tmp_path / "crowded.jsonl")
    assert project(tmp_path, tmp_path / "p", "--compute-ms", "1", files=["crowded"]) == 0
    assert "WARNING: ranks shared cores" in capsys.readouterr().out


def test_a_table_waits_for_no_plotting(folder):
    code = "import sys; import mpisign.report.__main__; assert not {'matplotlib', 'scipy', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


def test_a_points_terms_are_its_records():
    run = made_sweep(4, nodes=2, sizes=SIZES[:3], names=("vote-hierarchical",))
    run.head["config"]["tie"] = "zero"
    assert [p.terms for p in projection.points(run)] == [
        cost.terms("vote-hierarchical", 4, d=size // 4, nodes=2, tie="zero") for size in SIZES[:3]
    ]


def test_a_run_without_points_is_refused():
    with pytest.raises(ValueError, match="no sweep"):
        projection.points(made_run())
    foreign = made_sweep(names=("mpi",))
    foreign.head["methods"] = ["none", "powersgd-2"]
    with pytest.raises(ValueError, match="no method that the model knows"):
        projection.points(foreign)
