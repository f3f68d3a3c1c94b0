"""Does the vote pay here, and are all its results right? A ReFrame test for site suites.

reframe -c benchmarks/reframe_mpisign.py -r                             # a quick look: a tiny model, 2 ranks
reframe -C SITE.py -c benchmarks/reframe_mpisign.py -r -S model=resnet50 -S ranks=16 -S image_size=224

Where the site's partition names no launcher, the mpirun beside this Python starts the ranks.
"""

import os
import sys
from pathlib import Path

import reframe as rfm
import reframe.utility.sanity as sn
from reframe.core.backends import getlauncher
from reframe.core.builtins import run_before, sanity_function, variable


@rfm.simple_test
class MpisignTest(rfm.RunOnlyRegressionTest):
    """Passes if no method had a wrong result; its performance is each one's iteration and speed-up."""

    descr = "One-bit majority vote against all-reduce"
    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    sourcesdir = None
    executable = sys.executable
    ranks = variable(int, value=2)
    model = variable(str, value="tiny")
    image_size = variable(int, value=32)
    iterations = variable(int, value=6)
    methods = variable(str, value="mpi,gloo,vote-alltoall")

    @run_before("run")
    def start(self):
        self.num_tasks = self.ranks
        asked = {"model": self.model, "image-size": self.image_size, "methods": self.methods, "format": "lines",
                 "iterations": self.iterations, "output": "record.jsonl"}  # fmt: skip
        self.executable_opts = ["-m", "mpisign.bench", *(f"--{name}={value}" for name, value in asked.items())]
        if self.job.launcher.registered_name == "local":
            self.job.launcher = getlauncher("mpirun")()
            self.env_vars["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), "$PATH"])

    @sanity_function
    def every_result_is_right(self):
        right = sn.extractall(r"^mpisign: method=(\S+) .* wrong=[0-] ", self.stdout, 1)  # "-": none has no result
        every = sn.assert_eq(sn.sorted(right), sorted(self.methods.split(",")))
        return sn.all([every, sn.assert_eq(self.job.exitcode, 0)])

    @run_before("performance")
    def measure(self):
        self.perf_variables = {
            f"{method}_{key}": sn.make_performance_function(
                sn.extractsingle(rf"^mpisign: method={method} .* {key}=([\d.e+-]+) ", self.stdout, 1, float), unit
            )
            for method in self.methods.split(",")
            for key, unit in (("iteration_s", "s"), ("speedup", "ratio"))
        }
