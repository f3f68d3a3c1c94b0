from mpisign.bench.recorder import Recorder
from mpisign.report.records import Run


class Alone:
    """The only rank there is."""

    rank = 0

    def bcast(self, value):
        return value

    def gather(self, value):
        return [value]


def test_what_is_wrong_is_kept_once_with_its_sample_or_else_beside_them():
    run = Run({})
    recorder = Recorder(Alone(), run, nodes=[0])
    recorder.count("mpi", 1)  # before the warm-up
    recorder.count("gloo", 0)
    for iteration, size, wrong in ((-1, 4, 2), (-1, 16, 0), (0, 4, 0), (0, 16, 3)):
        recorder.keep("exchange", iteration, [{"method": "mpi", "bytes": size, "wrong": wrong, "events": []}])
    recorder.keep("overlapped", -1, [{"method": "mpi", "wrong": 5, "events": []}])
    assert recorder.wrong == 11
    assert recorder.worst == [{"method": "mpi", "wrong": 1}, {"method": "mpi", "bytes": 4, "wrong": 2},
                              {"method": "mpi", "wrong": 5}]  # fmt: skip
    assert [(line["bytes"], line["wrong"]) for line in run.samples] == [(4, 0), (16, 3)]
