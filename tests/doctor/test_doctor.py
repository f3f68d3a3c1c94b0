"""Each check against the fault that it is for: made in facts, or for real."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from launch import ROOT, environment, mpirun, run, skip_if_quick

from mpisign.doctor import diagnosis, examination, hardware, software
from mpisign.doctor.examination import Clock, Cuda, Facts, Library, World
from mpisign.doctor.finding import ERROR, OK, WARNING, Finding, those
from mpisign.ranks import launch as mpi

DOCTOR = ("-m", "mpisign.doctor")
SECOND = Path(f"{Path(sys.executable).parent.parent}-second") / "bin"  # Open MPI beside MPICH: see the Makefile
GIB = 2**30
NETWORK = {
    "by": "MPI", "transport": "ch4:ucx", "drivers": ["ib"], "settings": {}, "nodes": 2, "gloo": ["ib0"],
    "links": [{"mlx5_0:1": 100.0, "ib0": 100.0, "eth0": 1.0}], "pair": [0, 2], "latency_s": 1e-6, "bandwidth": 1.1e10,
    "carried": ["mlx5_0:1"],
}  # fmt: skip


def well(rank=0, size=4, **facts):
    """The facts of a rank that nothing is wrong with: each has two cores of its own, all share a node."""
    world = World(rank, size, 0, rank, "multiple", None, None, False)
    sound = Facts(
        python="3.12.1",
        versions={name: ".".join(map(str, oldest)) for name, oldest in examination.OLDEST.items()},
        launcher="mpirun", rank=rank, mpirun=None, cores=frozenset((2 * rank, 2 * rank + 1)), node_cores=8,
        shared=(8 * GIB, 4 * GIB), stale={}, memory=64 * GIB, clock=Clock(1e-9, 5e-8, "tsc"), unwritable=None,
        nvidia=False, slurm=None, library=Library("MPICH", "MPICH 5.0.2", "5.0", "4.1", ("/lib/libmpi.so.12",)),
        world=world, cached=True, cuda=Cuda(None, 0, None, "NCCL needs CUDA devices, and there are none"),
        network=NETWORK,
    )  # fmt: skip
    return replace(sound, **facts)


def four(**facts):
    """Four ranks; a fact may be a function of the rank."""
    return [
        well(rank, **{name: fact(rank) if callable(fact) else fact for name, fact in facts.items()})
        for rank in range(4)
    ]


def world(rank=0, **changed):
    return replace(well(rank).world, **changed)


def test_nothing_is_wrong_with_ranks_that_are_well():
    found = diagnosis.diagnose(four())
    assert [name for name, _ in found] == list(diagnosis.CHECKS)
    assert {finding.level for _, finding in found} == {OK}


def test_without_mpi_no_mpi_is_asked_for():
    """Neither mpi4py nor a library is missed by ranks that torchrun has started."""
    versions = well().versions | {"mpi4py": None}
    ranks = four(launcher="torchrun", library=None, versions=versions, world=lambda rank: World(rank, 4, rank // 2, 0))
    found = diagnosis.diagnose(ranks)
    assert {finding.level for _, finding in found} == {OK}
    told = {name: finding.text for name, finding in found}
    assert told["launcher"] == "torchrun, 4 rank(s) on 2 node(s)"
    assert "torchrun has started the ranks" in told["MPI library"]
    assert not {"thread level", "CUDA-aware MPI"} & set(told)
    assert ERROR in {finding.level for _, finding in diagnosis.diagnose([replace(ranks[0], launcher="mpirun")])}


def device(rank, uuids="abcd", fault=None):
    return Cuda("13.0", 4, uuids[rank] if uuids[rank] != "-" else None, fault)


FAULTS = {
    "a package is missing": (
        "packages", ERROR, four(versions=lambda rank: well().versions | ({"torch": None} if rank == 3 else {})),
        "torch is missing: python -m pip install 'torch>=2.4' in the environment of these ranks (rank 3)"),
    "a package is old": (
        "packages", ERROR, four(versions=well().versions | {"numba": "0.9.1"}), "numba 0.9.1 is too old"),
    "a package is broken": (
        "packages", ERROR, four(broken={"torchvision": "RuntimeError: no nms"}),
        "torchvision can't be imported (RuntimeError: no nms): install it anew (all ranks)"),
    "versions differ": (
        "packages", ERROR, four(versions=lambda rank: well().versions | {"torch": f"2.{4 + rank // 2}"}),
        "ranks run different versions of torch, 2.4, 2.5"),
    "Pythons differ": ("packages", ERROR, four(python=str), "different versions of Python"),
    "no MPI library": (
        "MPI library", ERROR, four(library=None, library_fault="libmpi.so.40: no such file", world=None),
        "mpi4py loads none (libmpi.so.40: no such file)"),
    "two libraries in one process": (
        "MPI library", ERROR, four(library=replace(well().library, loaded=("/a/libmpi.so.12", "/b/libmpi.so.40"))),
        "two are loaded, /a/libmpi.so.12, /b/libmpi.so.40"),
    "libraries differ": (
        "MPI library", ERROR, four(library=lambda rank: replace(well().library, version=f"MPICH 5.0.{rank % 2}")),
        "ranks run on different libraries, MPICH 5.0.0, MPICH 5.0.1"),
    "ranks were started singly": (
        "launcher", ERROR, [well(world=world(size=1, singly="srun was to start 4 ranks, but MPI sees 1"))],
        "srun was to start 4 ranks, but MPI sees 1; MPI here is MPICH 5.0.2"),
    "another launcher, and MPI did not start": (
        "launcher", ERROR, [well(launcher="Open MPI's mpirun", world=None)], "mpi4py runs on MPICH 5.0.2"),
    "another launcher, of one rank": (
        "launcher", WARNING, [well(launcher="Open MPI's mpirun", world=world(size=1))], "with the mpirun of MPICH"),
    "another mpirun on the PATH": (
        "launcher", ERROR, [well(launcher="python", mpirun="Open MPI", world=world(size=1))],
        "the mpirun on the PATH is that of Open MPI, but mpi4py runs on MPICH"),
    "no mpirun on the PATH": (
        "launcher", WARNING, [well(launcher="python", world=world(size=1))], "no mpirun is on the PATH"),
    "too low a thread level": (
        "thread level", ERROR, four(world=lambda rank: world(rank, thread_level="single", thread_fault="too low")),
        "too low; it is single"),
    "more ranks than cores": (
        "cores", WARNING, four(cores=frozenset((0, 1)), node_cores=2),
        "4 ranks share 2 core(s) and slow each other down: start fewer"),
    "all bound to one core of many": (
        "cores", WARNING, four(cores=frozenset((0,))), "the node has more: ask the scheduler"),
    "cores overlap": (
        "cores", WARNING, four(cores=lambda rank: frozenset((rank, rank + 1))), "overlap but are not the same"),
    "no shared memory": (
        "shared memory", WARNING, four(shared=lambda rank: None if rank in (0, 2) else (GIB, GIB)),
        "can't be written to, so ranks of one node exchange by slower ways: mount a tmpfs there (ranks 0, 2)"),
    "a container's shared memory": (
        "shared memory", WARNING, four(shared=(64 * 2**20,) * 2), "has 64 MiB free for 4 rank(s), 256 MiB are"),
    "something stale": (
        "shared memory", WARNING, four(stale={"mpich_shm_1_0": 2**21}), "left 2 MiB in /dev/shm"),
    "something stale in a job that was put back": (
        "shared memory", ERROR, four(stale={"mpich_shm_1_0": 2**21}, slurm={"restarts": 1}),
        "abort or hang in MPI_Init for them: on that node, rm /dev/shm/mpich_shm_1_0 (all ranks)"),
    "little memory": (
        "memory", WARNING, four(memory=5 * 10**9), "start at most 2 a node, or take a smaller --model (all ranks)"),
    "unknown memory": ("memory", WARNING, four(memory=None), "does not say"),
    "a fast link that lies idle": (
        "network", WARNING, four(network=NETWORK | {"bandwidth": 1.1e8, "carried": ["eth0"]}),
        "MPI sends 0.88 Gbit/s between nodes over eth0 1 Gbit/s, though there is a link of 100 Gbit/s, mlx5_0:1: set"),
    "Gloo on a slow interface": (
        "network", WARNING, four(network=NETWORK | {"gloo": ["eth0"]}), "set GLOO_SOCKET_IFNAME=ib0"),
    "a driver that torch can't use": (
        "CUDA", WARNING, four(nvidia=True, cuda=Cuda("13.0", 0, None, "none")), "built for CUDA 13.0, can't use it"),
    "a rank without a device": (
        "CUDA", WARNING, four(cuda=lambda rank: device(rank, "ab-c")), "no device here, so all ranks would compute on "
        "CPUs: start ranks only where devices are (rank 2)"),
    "shared devices": (
        "CUDA", ERROR, four(cuda=lambda rank: device(rank, "abab")), "4 ranks, but 2 device(s)"),
    "NCCL, on shared devices": (
        "NCCL", WARNING, four(cuda=lambda rank: device(rank, "abab")), "it needs one CUDA device a rank"),
    "torch without NCCL": (
        "NCCL", WARNING, four(cuda=lambda rank: device(rank, fault="this torch was built without NCCL")),
        "this torch was built without NCCL (all ranks)"),
    "a coarse clock": ("clock", WARNING, four(clock=Clock(4e-3, 5e-8, "jiffies")), "source jiffies"),
    "a dear clock": (
        "clock", WARNING, four(clock=lambda rank: Clock(1e-9, 2e-6 if rank else 5e-8, "hpet")),
        "or trust no short times (ranks 1-3)"),
    "nowhere to keep compiled code": ("cache", WARNING, four(cached=False), "set NUMBA_CACHE_DIR (all ranks)"),
    "nowhere to keep a record": ("results", ERROR, four(unwritable="/ is not writable"), "/ is not writable: start in"),
    "a node of the job left out": ("Slurm", WARNING, four(slurm={"nodes": 2}), "has 2 nodes, its ranks are on 1"),
    "fewer cores than the job has": (
        "Slurm", WARNING, four(slurm={"cores": 4}), "the job has 4 cores a task, a rank 2; srun does not ask"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_nothing_else_is_blamed(fault):
    check, level, ranks, text = FAULTS[fault]
    found = [(name, finding) for name, finding in diagnosis.diagnose(ranks) if finding.level != OK]
    assert (check, level) in {(name, finding.level) for name, finding in found}
    assert any(text in finding.text for name, finding in found if name == check), found
    assert {name for name, _ in found} - {check} <= {"CUDA", "NCCL"}


def test_every_check_has_a_fault():
    assert {check for check, *_ in FAULTS.values()} == set(diagnosis.CHECKS) - {"CUDA-aware MPI"}


def test_one_device_a_rank_is_fine():
    ranks = four(cuda=device, nvidia=True)
    assert hardware.check_cuda(ranks) == [Finding(OK, "4 device(s), one a rank")]
    assert hardware.check_nccl(ranks) == [Finding(OK, "runs, and is the baseline")]


def test_unbound_ranks_on_two_nodes_are_judged_node_by_node():
    ranks = four(cores=frozenset(range(2)), world=lambda rank: world(rank, node=rank // 2))
    first, second = hardware.check_cores(ranks)
    assert first.level == second.level == OK
    assert "2 ranks share 2 cores" in first.text
    assert second.text.endswith("(ranks 2-3)")


def test_ranks_are_named_in_runs():
    assert those([0], 1) == ""
    assert those([0, 1, 2], 3) == " (all ranks)"
    assert those([5], 9) == " (rank 5)"
    assert those([3, 5, 6, 7], 9) == " (ranks 3, 5-7)"


def test_the_oldest_versions_are_those_of_the_package():
    listed = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    wanted = re.findall('"([^"]+)"', listed[1])
    assert {f"{name}>={'.'.join(map(str, oldest))}" for name, oldest in examination.OLDEST.items()} == set(wanted)


def test_a_segment_is_stale_once_nobody_has_it_open(tmp_path):
    for name in ("mpich_shm_5_0", "sm_segment.x.0", "mine"):
        (tmp_path / name).write_bytes(b"x" * 100)
    with open(tmp_path / "sm_segment.x.0"):
        assert examination.stale_segments(tmp_path) == {"mpich_shm_5_0": 100}
    assert set(examination.stale_segments(tmp_path)) == {"mpich_shm_5_0", "sm_segment.x.0"}


def test_a_mapped_segment_is_not_stale(tmp_path):
    import mmap

    path = tmp_path / "mpich_shm_6_0"
    path.write_bytes(b"x" * 4096)
    with open(path) as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    assert examination.stale_segments(tmp_path) == {}
    mapped.close()
    assert set(examination.stale_segments(tmp_path)) == {"mpich_shm_6_0"}


@pytest.mark.parametrize(("version", "group"), [("2", "0::/job/step"), ("1", "4:memory:/job/step")])
def test_the_control_group_limits_memory(tmp_path, version, group):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 99 kB\nMemAvailable:   9000 kB\n")
    assert examination.memory_left(tmp_path) == 9000 * 1024
    (tmp_path / "proc/self/cgroup").write_text(f"1:cpu:/elsewhere\n{group}\n")
    folder = tmp_path / "sys/fs/cgroup" / ("memory" if version == "1" else "")
    limit, used = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == "1" else ("memory.max", "memory.current")
    )
    for part, said in (("job", "5000000"), ("job/step", "max")):
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / limit).write_text(said + "\n")
        (folder / part / used).write_text("1000000\n")
        (folder / part / "memory.stat").write_text("anon 5\ninactive_file 250000\n")
    assert examination.memory_left(tmp_path) == 4250000


@pytest.mark.parametrize(("said", "whose"), [
    ("mpirun (Open MPI) 5.0.11", "Open MPI"), ("HYDRA build details:", "MPICH"), ("mpirun (x) 1.0", "unknown"),
])  # fmt: skip
def test_whose_the_mpirun_on_the_path_is(tmp_path, monkeypatch, said, whose):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert examination.path_mpirun() is None
    (tmp_path / "mpirun").write_text(f"#!{sys.executable}\nprint({said!r})\n")
    (tmp_path / "mpirun").chmod(0o755)
    assert examination.path_mpirun() == whose


def test_slurm_is_asked_by_name(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert examination.slurm() is None
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_RESTART_COUNT": "x", "SLURM_A": "9"}.items():
        monkeypatch.setenv(name, value)
    assert examination.slurm() == {"tasks": 4}


def levels(text):
    """Return level and check of each line, which are all there is."""
    read = [re.fullmatch(r"(OK|warning|error) +([\w -]+): .+", line) for line in text.splitlines()]
    assert all(read), text
    return [(line[2], line[1]) for line in read]


def test_under_mpirun_one_rank_speaks_for_all():
    ended = run(2, *DOCTOR)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert list(dict.fromkeys(name for name, _ in levels(ended.stdout))) == list(diagnosis.CHECKS)
    assert ERROR not in dict(levels(ended.stdout)).values()
    assert "network: between ranks 0 and 1, on one node, whose memory is the network: " in ended.stdout
    assert "launcher: mpirun, 2 rank(s) on 1 node(s)" in ended.stdout or "Open MPI's mpirun, 2 rank(s)" in ended.stdout


def test_too_low_a_thread_level_for_real():
    ended = run(1, *DOCTOR, "--format", "json", MPI4PY_RC_THREAD_LEVEL="single")
    assert ended.returncode == 1
    found = {line["check"]: line for line in json.loads(ended.stdout)}
    assert found["thread level"]["level"] == ERROR
    assert "it is single" in found["thread level"]["text"]


def alone(*options, python=sys.executable, **extra):
    return subprocess.run([python, *DOCTOR, *options], env=environment(**extra), capture_output=True, text=True,
                          timeout=120, check=False)  # fmt: skip


def test_in_an_empty_environment_all_that_is_missing_is_named(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "empty"], check=True)
    ended = alone(python=tmp_path / "empty/bin/python")
    assert ended.returncode == 1
    assert ended.stderr == "mpisign.doctor: 1 rank(s) are examined, for 120 s at most\n"
    missing = re.findall(r"^error +packages: (\w+) is missing", ended.stdout, re.M)
    assert missing == list(examination.OLDEST)
    assert ("MPI library", ERROR) in levels(ended.stdout)


def test_an_mpi_library_that_is_not_there():
    other = "openmpi" if "libmpi.so.12" in "".join(_beside(sys.executable)) else "mpich"
    ended = alone(MPI4PY_MPIABI=other)
    assert ended.returncode == 1
    assert re.search(r"^error +MPI library: mpi4py loads none \(.*libmpi", ended.stdout, re.M), ended.stdout


def _beside(python):
    return [path.name for path in (Path(python).parent.parent / "lib").glob("libmpi.so*")]


def test_bad_arguments():
    ended = alone("--limit", "0")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "mpisign.doctor: error: argument --limit: 0 is less than 1 (--help lists the options)\n"


@pytest.fixture
def clean_shared_memory():
    """Remove what a killed MPI leaves, and nobody else has open."""
    before = set(examination.stale_segments())
    yield
    for name in set(examination.stale_segments()) - before:
        (examination.SHARED / name).unlink(missing_ok=True)


def test_a_rank_that_never_joins_does_not_hang_the_others(clean_shared_memory):
    command = [*mpirun(1, *DOCTOR, "--limit", "3"), ":", "-n", "1", "sleep", "60"]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=50, check=False)
    assert ended.returncode != 0
    last = ended.stdout.splitlines()[-1]
    assert re.match(r"error +MPI library: after 3 s: MPI did not start", last), ended.stdout


def test_a_rank_that_dies_while_it_is_examined(tmp_path, clean_shared_memory):
    (tmp_path / "tqdm.py").write_text("import os, sys\nos._exit(7)\n")
    ended = alone(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert ended.returncode == 1
    assert re.match(r"error +ranks: when this rank ended: not every rank", ended.stdout.splitlines()[-1]), ended.stdout


@pytest.mark.skipif(not SECOND.exists(), reason="no second MPI is set up beside this one (make test does)")
@pytest.mark.parametrize("swapped", [False, True])
def test_the_launcher_of_another_mpi(swapped, clean_shared_memory):
    skip_if_quick()
    first = Path(sys.executable).parent
    launch = [first / "mpirun"] if swapped else [SECOND / "mpirun", "--oversubscribe"]
    command = [*launch, "-n", "2", (SECOND if swapped else first) / "python", *DOCTOR]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    said = [line for line in ended.stdout.splitlines() if re.match(r"error +launcher: ", line)]
    assert len(said) == 1, ended.stdout
    assert "Open MPI" in said[0]
    assert ("MPI sees 1" if swapped else "mpi4py runs on MPICH") in said[0]


def test_launchers_are_known_to_the_session():
    assert set(software.LAUNCHERS_OF) < set(mpi.LAUNCHERS)
