"""The table of docs/ddp.md: all habits, part by part."""

from features import FEATURES
from keeping import KEEPING
from kinds import KINDS
from loops import LOOPS
from starts import STARTING as STARTS

PARTS = {
    "How the ranks are started": STARTS,
    "Features of DistributedDataParallel": FEATURES,
    "Models and numbers": KINDS,
    "Training loops": LOOPS,
    "Saving, loading, copying": KEEPING,
}
HABITS = [habit for part in PARTS.values() if part is not STARTS for habit in part]  # tried under mpirun
