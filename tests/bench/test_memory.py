"""Whether a run fits: what is free is read from planted files, and the verdict is of planted nodes."""

import pytest

from mpisign.bench.memory import Node, estimate, fitting, verdict
from mpisign.methods.table import METHODS
from mpisign.ranks import memory

GB = 10**9


def plant(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        ({"proc/meminfo": "MemTotal: 99 kB\nMemAvailable:   1000 kB\n"}, 1_024_000),
        ({"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/memory.max": "max\n"}, None),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": "900\n",
          "sys/fs/cgroup/a/memory.current": "500\n", "sys/fs/cgroup/a/memory.stat": "inactive_file 100\n"}, 500),
        ({"proc/self/cgroup": "4:cpu,memory:/j\n", "sys/fs/cgroup/memory/j/memory.limit_in_bytes": "900\n",
          "sys/fs/cgroup/memory/j/memory.usage_in_bytes": "950\n",
          "sys/fs/cgroup/memory/j/memory.stat": "inactive_file 3\ntotal_inactive_file 0\n"}, 0),
    ],
)  # fmt: skip
def test_what_is_free_is_the_least_of_machine_and_control_groups(tmp_path, files, free):
    plant(tmp_path, files)
    assert memory.available(tmp_path) == free


def test_a_warning_and_a_refusal_that_names_what_fits():
    assert verdict(GB, [Node(4, 6 * GB)]) == ("", None)
    assert "tight" in verdict(GB, [Node(4, int(4.5 * GB))])[0]
    assert "3 ranks would fit" in verdict(GB, [Node(4, 4 * GB)])[1]
    assert "1 rank on each of 2 nodes would fit" in verdict(GB, [Node(1, 4 * GB), Node(4, 2 * GB)])[1]
    assert fitting(GB, 10 * GB) == 9


def test_the_estimate_of_resnet50_is_near_what_was_measured():
    """On 4 ranks 1.33 to 1.40 GB of its own a rank, of which the libraries' are the same on all."""
    whole = sum(estimate(25_557_032, 90_000_000, 4, METHODS.values()).values())
    assert 1.2 * GB < whole < 1.6 * GB
