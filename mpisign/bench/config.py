"""What is asked of a run of the bench: its options, and nothing that needs torch or MPI."""

from __future__ import annotations

from dataclasses import dataclass

from ..coding.ties import TIES
from ..methods.table import METHODS
from ..ranks import options
from ..ranks.options import above_0, fraction, names, natural, not_negative, option, positive
from ..report.formats import FORMATS
from ..voting.adversary import ADVERSARIES
from ..voting.schedule import SCHEDULES

# Of a measurement whose iterations are not given: how long it goes on, and its fewest and most rounds.
SECONDS, SECONDS_OF_A_SIZE = 10.0, 4.0
LEAST, MOST = 10, 1000


@dataclass(frozen=True)
class Config:
    """What is asked of a run."""

    model: str = option(
        "resnet50", "torchvision's name of a classifier, tiny, or package.module:function of yours", metavar="NAME"
    )
    batch_size: int = option(None, "pictures a rank (default: 1 on CPUs, 32 on CUDA)", type=positive, metavar="N")
    image_size: int = option(224, "height and width of the pictures", type=positive, metavar="N")
    data: str = option("", "a folder of class folders with pictures (default: synthetic ones)", metavar="PATH")
    methods: tuple[str, ...] = option(
        (),
        f"methods to run, separated by commas (default: all that can run): {', '.join(METHODS)}",
        type=names(tuple(METHODS)),
        metavar="NAME,...",
    )
    schedule: str = option(
        "serial",
        "serial: backward, then the exchange, so that all methods share one gradient; overlap: each exchanges during "
        "a backward of its own, as in training",
        choices=SCHEDULES,
    )
    iterations: int | None = option(
        None,
        "measured iterations, or the least number with --until (default: as many as fit into "
        f"{SECONDS:.0f} s, of each size of a sweep {SECONDS_OF_A_SIZE:.0f} s, but {LEAST} at least, or what verdicts "
        f"take, and {MOST} at most)",
        type=positive,
        metavar="N",
    )
    until: float | None = option(
        None,
        "go on until the interval of every speed-up is as narrow as this share of it to each side, such as 0.02",
        type=fraction,
        metavar="SHARE",
    )
    time_cap: float = option(
        600.0, "with --until: stop after this time (a sweep: all sizes together)", type=not_negative, metavar="S"
    )
    warmup: int = option(2, "iterations before the measured ones", type=natural, metavar="N")
    tie: str = option("positive", "who wins where the votes are even: +1, a seeded coin, or nobody", choices=TIES)
    momentum: float = option(0.9, "each worker's momentum, before the sign", type=fraction, metavar="BETA")
    bucket_mb: float | None = option(
        None, "DistributedDataParallel's bucket size (default: its own sizes)", type=above_0, metavar="MB"
    )
    adversaries: int = option(0, "how many ranks are traitors", type=natural, metavar="N")
    adversary: str = option("invert", "what a traitor sends", choices=tuple(ADVERSARIES))
    share_gpus: bool = option(False, "let ranks share CUDA devices, to try it out: the times are not a cluster's")
    anyway: bool = option(False, "start although memory is not likely to suffice")
    seed: int = option(0, "of weights, pictures, coins, traitors and the order of methods", type=natural, metavar="N")
    output: str = option("", "the record's file (default: a new one in results/<machine>/)", metavar="FILE")
    format: str = option("table", "how the result is printed", choices=FORMATS)
    wide: bool = option(False, "print all columns, which takes a wide terminal")
    per_iteration: bool = option(False, "print each iteration too")
    quiet: bool = option(False, "say nothing on stderr but warnings and errors")
    trace: bool = option(False, "keep when each span began, for mpisign.report --trace")
    sizes: tuple[int, ...] = option(
        (),
        "no model: sweep vectors of these sizes (bytes of fp32), such as 1K:256M, or 1K:256M:2 to double",
        type=options.sizes,
        metavar="LOW:HIGH[:FACTOR]",
    )
