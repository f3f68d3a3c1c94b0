"""The pages: links lead somewhere, what is named exists, the README is short, and its script runs as it stands."""

import re
import socket
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest
from launch import ROOT, our_lines, run, skip_if_quick, torchrun

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "results" / "README.md",
         *sorted((ROOT / "docs").glob("*.md"))]  # fmt: skip
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
MODULE = re.compile(r"(?:-m |`)((?:mpisign|benchmarks)(?:\.[a-z_]+)+)(?=[\s`])")
FILE = re.compile(r"`((?:mpisign|benchmarks|tests|docs|slurm)/[a-z0-9_./]*)`")


def without_code(text):
    return re.sub(r"```.*?```", "", text, flags=re.S)


def anchors(page):
    """Return what GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def scripts(page):
    """Return the blocks of Python of a page, which are complete scripts."""
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.S)


def exists(module):
    """Tell whether a dotted name is a module, or something that a module defines."""
    parent, _, name = module.rpartition(".")
    try:
        return find_spec(module) is not None or _defines(find_spec(parent), name)
    except ModuleNotFoundError:  # the parent is itself a name in a module, or is not there
        return parent.count(".") > 0 and exists(parent)


def _defines(spec, name):
    return spec is not None and re.search(rf"\b{name}\b", open(spec.origin).read()) is not None


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), target
        assert other.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(other), target


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_what_is_named_exists(page):
    if page.name == "CHANGELOG.md":  # it names what was, too
        return
    for module in MODULE.findall(page.read_text()):
        assert exists(module), module
    for path in FILE.findall(page.read_text()):
        assert (ROOT / path).exists(), path


def test_the_readme_is_short_and_leads_to_every_page():
    readme = PAGES[0].read_text()
    assert len(readme.splitlines()) <= 250
    first = readme[: readme.index("\n## ")]
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name}" in first
    assert "(CONTRIBUTING.md)" in first


def test_the_readme_has_one_table_and_one_chart():
    readme = PAGES[0].read_text()
    assert len(re.findall(r"^\| method +\|", readme, re.M)) == readme.count("![") == 1
    table = [line for line in readme.splitlines() if line.startswith("|")]
    assert max(map(len, table)) <= 150
    assert "WARNING: more ranks than cores" in readme


@pytest.fixture
def readmes(tmp_path):
    [script] = scripts(PAGES[0])
    file = tmp_path / "script.py"
    file.write_text(script)
    return str(file)


def losses(printed):
    return [float(loss) for loss in re.findall(r"loss ([\d.]+)", printed)]


def test_the_readmes_script_votes_the_same_under_mpirun_and_torchrun(readmes):
    under_mpirun, under_torchrun = run(3, "-m", "mpi4py", readmes), torchrun(3, readmes)
    for done in (under_mpirun, under_torchrun):
        assert done.returncode == 0, done.stderr
    assert len(losses(under_mpirun.stdout)) == 4
    assert losses(under_mpirun.stdout)[-1] < losses(under_mpirun.stdout)[0] / 2
    assert under_torchrun.stdout == under_mpirun.stdout


def test_the_readmes_script_votes_on_two_nodes(readmes):
    """Two of torchrun's agents, each of which takes itself for a node."""
    skip_if_quick()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ("--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port))
    with ThreadPoolExecutor() as agents:
        ended = list(agents.map(lambda node: torchrun(1, *where, "--node-rank", str(node), readmes), range(2)))
    assert [done.returncode for done in ended] == [0, 0], ended[0].stderr
    assert len(losses(ended[0].stdout)) == 4


def test_the_pieces_are_as_shown(tmp_path):
    [script] = scripts(ROOT / "docs" / "training.md")
    file = tmp_path / "pieces.py"
    file.write_text(script)
    done = run(3, "-m", "mpi4py", str(file))
    assert (done.returncode, our_lines(done.stderr)) == (0, [])
