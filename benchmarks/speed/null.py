"""Are verdicts to be believed? Six names of one vote must be called alike; what is slower must be found.

    mpirun -bind-to core -n 2 python -m benchmarks.speed.null [--output FILE] [--figure FILE.svg]
    python -m benchmarks.speed.null --show FILE

The bench's own measuring, of one vote under several names, half of which are then called rivals; and of the same vote
that waits for 5 % of the time it took. Vectors of three sizes, and a small model whose exchanges overlap its backward.
The samples are cut into runs of n; each goes through what makes the tables of users, and the verdicts that are false
are counted: in the rows against the baseline, in those against the fastest rival, and in the answer. Differences of
other sizes are planted in numbers: one vote's times are multiplied. `--until` is played again by the bench's own rule.
"""

import math
import time
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import binom, binomtest
from tabulate import tabulate

from benchmarks.keep import keep_and_show
from mpisign.report import samples
from mpisign.report.records import Run
from mpisign.report.rows import Comparison
from mpisign.report.samples import Measured
from mpisign.report.statistics import CONFIDENCE, enough, left_out

SLOWER = 0.05
KINDS = {"rival a": "rival", "rival b": "rival", "rival c": "rival",
         "vote a": "vote", "vote b": "vote", "vote c": "vote", "5 % more": "vote"}  # fmt: skip
SLOWED = "5 % more"
ALIKE = tuple(name for name in KINDS if name != SLOWED)
PLANTED = 0.02, 0.05, 0.1, 0.2  # in the times of the last of ALIKE
MODEL = "model"
# Rounds by ranks and coordinates; few where ranks share cores, and one size alone where two are not bound to any.
ROUNDS = {2: {2**14: 2000, 2**18: 800, 2**22: 50, MODEL: 400}, 4: {2**14: 500, 2**18: 250, 2**22: 20, MODEL: 100},
          16: {2**14: 150, 2**18: 60, 2**22: 20}}  # fmt: skip
UNBOUND = {2: {2**18: 800}}
WARMUP = 10
LENGTHS = 10, 20, 50, 100, 200, 500  # n, the samples of a run
LONG = 50  # samples: from here on the rate of independent ones is near the nominal one
MOST = 200  # runs that are cut of each length
UNTIL = 0.1, 0.05


def measure():
    from mpisign.methods.table import METHODS
    from mpisign.ranks import group, launch
    from mpisign.ranks.place import find
    from mpisign.voting.hook import vote_hook

    METHODS.update(dict.fromkeys(KINDS, METHODS["vote-alltoall"]))  # before the bench lists them
    from mpisign.bench import config as asked
    from mpisign.bench.setting import settle

    def slowed(state, bucket):
        began = time.perf_counter()
        future = vote_hook(state, bucket)
        end = began + (1 + SLOWER) * (time.perf_counter() - began)
        while time.perf_counter() < end:
            pass
        return future

    with launch.session("null") as comm, group.process_group(comm, "gloo", one_node=True):
        rounds_of = {**ROUNDS, **({} if find(comm, share_gpus=False).machine["bound"] else UNBOUND)}
        for what, rounds in rounds_of[comm.size].items():
            common = {"warmup": WARMUP, "output": "null"}
            if what == MODEL:  # a hook that waits would not slow what overlaps
                config = asked.Config(model="tiny", image_size=32, schedule="overlap", methods=ALIKE,
                                      iterations=2 * rounds, **common)  # fmt: skip
            else:
                config = asked.Config(sizes=(4 * what,), methods=tuple(KINDS), iterations=rounds, **common)
            run = _run(comm, settle(config, comm), slowed)
            if comm.rank == 0:
                yield _series(run, what)


def _run(comm, setting, slowed):
    """Return a run of the bench, in which the method SLOWED, if it takes part, has that hook."""
    from mpisign.bench.measure import measure as take
    from mpisign.bench.setting import new_run
    from mpisign.methods.table import METHODS, ready

    run, terms = new_run(setting), setting.terms
    with ready(comm, {name: METHODS[name] for name in setting.methods}, terms=terms) as methods:
        if SLOWED in methods:
            methods[SLOWED].hook = slowed
        take(run, comm, setting=setting, methods=methods, terms=terms)
    if run.end["wrong"]:
        raise RuntimeError(f"{run.end['wrong']} wrong coordinates")
    return run


def _series(run, what):
    """Return the line that is kept of a run: each name's seconds of an exchange, or of an overlapped iteration."""
    machine = run.head["machine"]
    kind, size = ("overlapped", None) if what == MODEL else ("exchange", 4 * what)
    lines = samples.grouped(run)[kind, size]
    return {
        "type": "series", "ranks": machine["ranks"], "cores": machine["cores"], "bound": machine.get("bound"),
        "coordinates": run.head.get("coordinates", what), "schedule": run.head["config"]["schedule"],
        "block": run.head["block"],
        "seconds": {name: samples.slowest(lines[name], ("seconds",)).round(9).tolist() for name in run.head["methods"]},
    }  # fmt: skip


@dataclass(frozen=True)
class Series:
    """The samples of each name, and where they come from."""

    seconds: dict
    about: str

    @property
    def length(self):
        return len(next(iter(self.seconds.values())))

    def cut(self, part, **changes):
        """Return a part of it; `times` of the last of ALIKE, and only `names` of them."""
        times, names = changes.get("times", 1.0), changes.get("names", tuple(self.seconds))
        seconds = {name: self.seconds[name][part] * (times if name == ALIKE[-1] else 1.0) for name in names}
        return replace(self, seconds=seconds)

    def parts(self, n):
        """Return the slices that cut it into runs of n."""
        return [slice(at, at + n) for at in range(0, self.length - n + 1, n)][:MOST]


def read(line):
    """Return what a line of the record has, a sample a block."""
    seconds = {name: samples.blocks(np.array(values), line["block"]) for name, values in line["seconds"].items()}
    what = "overlapped model" if line["schedule"] == "overlap" else f"2^{line['coordinates'].bit_length() - 1}"
    return Series(seconds, what)


def judged(series, until=None):
    """Return the comparison that users' tables are made of."""
    right = dict.fromkeys(series.seconds, 0)
    return Comparison(empty(series, until), Measured(np.zeros(1), series.seconds, series.seconds, right))


def empty(series, until=None):
    """Return a run of these names that has nothing yet."""
    config = {"sizes": (), "until": until, "iterations": None, "warmup": 0, "time_cap": math.inf, "schedule": "serial"}
    return Run({"config": config, "methods": list(series.seconds), "baseline": ALIKE[0], "block": 1,
                "kinds": {name: KINDS[name] for name in series.seconds}})  # fmt: skip


def false_verdicts(comparison, answer):
    """Return whether a table has a false verdict: in the rows by either column, and in the answer of another one."""
    rows = [comparison.row(name) for name in ALIKE]
    columns = [any(_says(row[key]) for row in rows) for key in ("verdict", "rival_verdict")]
    return [*columns, _says(answer.answer()["verdict"])]


def _says(verdict):
    return verdict in ("faster", "slower")


def found(series, part, times):
    """Tell whether a planted difference is found, in its row against the baseline."""
    return judged(series.cut(part, times=times)).row(ALIKE[-1])["verdict"] == "slower"


def rates(series):
    """Yield for each n how many runs there are, and how many of them have false verdicts and find what is slower.

    That is: n, runs, false verdicts of three kinds, PLANTED, SLOWED or None, the difference that the tables say most
    runs find, as a share, and how many of them do.
    """
    for n in LENGTHS:
        parts = series.parts(n)
        if len(parts) < 2:
            continue
        wholes = [judged(series.cut(part)) for part in parts]
        answers = [judged(series.cut(part, names=ALIKE)) for part in parts]
        false = np.sum([false_verdicts(*both) for both in zip(wholes, answers, strict=True)], axis=0)
        planted = [sum(found(series, part, 1 + share) for part in parts) for share in PLANTED]
        slow = sum(one.row(SLOWED)["verdict"] == "slower" for one in wholes) if SLOWED in series.seconds else None
        told = float(np.median([one.smallest()[ALIKE[-1]] for one in wholes]))
        yield n, len(parts), false, planted, slow, told, sum(found(series, part, 1 + told) for part in parts)


class Alone:
    """The only rank there is."""

    rank = 0

    def bcast(self, value):
        return value


def replays(series, until):
    """Return of runs with --until, one after the other, how many samples each took, and its false verdicts."""
    from mpisign.bench.rounds import Rounds

    series, at, ended = series.cut(slice(None), names=ALIKE), 0, []
    while at < series.length and len(ended) < MOST:
        run = empty(series, until)
        for i in Rounds(Alone(), run):
            if at + i >= series.length:
                return ended
            run.samples += [{"type": "exchange", "iteration": i, "rank": 0, "method": name, "wrong": 0,
                             "seconds": values[at + i]} for name, values in series.seconds.items()]  # fmt: skip
        taken = slice(at, at + i + 1)
        comparison = judged(series.cut(taken), until)
        ended.append((i + 1, *false_verdicts(comparison, comparison)))
        at = taken.stop
    return ended


def share(count, of):
    interval = binomtest(int(count), of).proportion_ci(CONFIDENCE)
    return f"{count / of:.1%} [{interval.low:.1%}, {interval.high:.1%}]"


def show(lines, style):
    first, nominal = lines[0], 1 - CONFIDENCE
    bound = {True: "bound to cores", False: "not bound", None: "bound or not: unknown"}[first["bound"]]
    print(f"{first['ranks']} ranks on {first['cores']} cores, {bound}; a table has {len(KINDS)} rows, that of the "
          f"overlapped model {len(ALIKE)}")  # fmt: skip
    false, power, needed, until, total, long, expected = [], [], [], [], np.zeros(4, int), np.zeros(4, int), 0.0
    for series in map(read, lines):
        measured = list(rates(series))
        for n, runs, wrong, planted, slow, told, nine in measured:
            total += (runs, *wrong)
            long += (runs, *wrong) if n >= LONG else 0
            expected += runs * independent(series, n)
            false.append([series.about, n, runs, *(share(count, runs) for count in wrong)])
            power.append([series.about, n, *(f"{count / runs:.0%}" for count in planted),
                          "" if slow is None else f"{slow / runs:.0%}",
                          f"{told:.1%}", f"{nine / runs:.0%}"])  # fmt: skip
        if measured:
            needed.append([series.about, *(_needed(measured, at) for at in reversed(range(len(PLANTED))))])
        for width in UNTIL:
            ended = replays(series, width)
            if ended:
                counts = np.array(ended)
                until.append([series.about, f"{width:g}", f"{np.median(counts[:, 0]):.0f}", len(ended),
                              *(share(count, len(ended)) for count in counts[:, 1:].sum(axis=0))])  # fmt: skip
    print(f"\nOf all {counted(total)}. (Of independent samples at most {expected / total[0]:.1%} have one on the "
          f"baseline.) With n of {LONG} and more: {counted(long)}")  # fmt: skip
    print("\nSamples of a run that finds such a difference in 9 of 10 cases:\n")
    print(tabulate(needed, ["coordinates", *(f"{times:.0%}" for times in reversed(PLANTED))], style))
    columns = [f"{what} (nominal: at most {nominal:.0%})" for what in
               ("tables with a false verdict on the baseline", "on the fastest rival", "false answers")]  # fmt: skip
    print("\nFalse verdicts:\n")
    print(tabulate(false, ["coordinates", "n", "tables", *columns], style))
    print("\nFound, of differences in one row of such a table: planted in numbers, and a vote that really is slower. "
          "The last columns: what the tables say that most runs find (worked out for 9 of 10), and how many "
          "did.\n")  # fmt: skip
    planted = [f"{times:.0%}" for times in PLANTED]
    print(tabulate(power, ["coordinates", "n", *planted, "really 5 %", "told", "found of what is told"], style))
    if until:
        print("\nFalse verdicts of runs with `--until`:\n")
        print(tabulate(until, ["coordinates", "--until", "samples (median)", "runs", *columns], style))
    print("\n" + correlations(lines))


def independent(series, n):
    """Return the share of tables of n samples that have a false verdict on the baseline at most, were they independent.

    An interval lies between order statistics, and so its rate is below the nominal one, far below where n is small.
    """
    comparison = judged(series.cut(slice(0, n)))
    cut = left_out(n, comparison.with_baseline)
    return (len(ALIKE) - 1) * 2 * binom.cdf(cut, n, 0.5) if n >= enough(comparison.with_baseline) else 0.0


def counted(total):
    every, *wrong = total
    baseline, rival, answer = (f"{count / max(1, every):.1%}" for count in wrong)
    return (f"{every} tables {baseline} have a false verdict on the baseline, {rival} one on the fastest rival, and "
            f"{answer} a false answer")  # fmt: skip


def _needed(measured, at):
    """Return the fewest samples, of LENGTHS, from which on nine of ten runs find the planted difference."""
    enough = [n for n, runs, _, planted, *_ in measured if planted[at] >= 0.9 * runs]
    return str(enough[0]) if enough else f"more than {measured[-1][0]}"


def correlations(lines):
    """Say how alike samples in a row are, of which ratios are taken: of rounds, and of the halves of a block."""
    told = []
    for line, series in zip(lines, map(read, lines), strict=True):
        first, again = (np.log(series.seconds[name]) for name in ALIKE[:2])
        said = f"{series.about}: {np.corrcoef((first - again)[1:], (first - again)[:-1])[0, 1]:.2f}"
        if line["block"] > 1:
            halves = np.log(np.array(line["seconds"][ALIKE[0]]) / line["seconds"][ALIKE[1]]).reshape(-1, line["block"])
            said += f" (within a block {np.corrcoef(halves[:, 0], halves[:, 1])[0, 1]:.2f})"
        told.append(said)
    return f"Correlation of a ratio with the one before it: {'; '.join(told)}"


def draw(lines):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, series in enumerate(map(read, lines)):
        rows = list(rates(series))
        n, runs = (np.array([row[k] for row in rows]) for k in (0, 1))
        worst = np.array([max(row[2]) for row in rows])
        ends = [binomtest(int(count), int(of)).proportion_ci(CONFIDENCE) for count, of in zip(worst, runs, strict=True)]
        reach = np.array([[count / of - end.low, end.high - count / of]
                          for count, of, end in zip(worst, runs, ends, strict=True)]).T  # fmt: skip
        left.errorbar(n * 1.05**i, worst / runs, reach, fmt="osD^"[i], c=f"C{i}", capsize=3, label=series.about)
        for share, dash in zip(PLANTED, (":", "-.", "--", "-"), strict=True):
            at = PLANTED.index(share)
            label = {"label": f"{series.about}"} if share == PLANTED[-1] else {}
            right.plot(n, [row[3][at] / row[1] for row in rows], dash, c=f"C{i}", marker="osD^"[i], **label)
    left.axhline(1 - CONFIDENCE, c="grey", ls="--")
    left.set(title="tables with a false verdict (the worst of the columns)", ylabel="share of the tables")
    told = ", ".join(f"{share:.0%} {dash}" for share, dash in zip(PLANTED, (":", "-.", "--", "-"), strict=True))
    right.set(title=f"planted differences found: {told}")
    for axes in (left, right):
        axes.set(xscale="log", xlabel="samples of a run")
        axes.set_xticks(LENGTHS, map(str, LENGTHS))
        axes.minorticks_off()
        axes.legend()
    return figure


if __name__ == "__main__":
    keep_and_show("null", __doc__, measure, show, draw)
