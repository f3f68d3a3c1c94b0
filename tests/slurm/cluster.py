"""A real Slurm on this machine alone, in a folder of its own: munged, slurmctld, slurmd; root, Debian's packages."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "scancel", "sinfo")
PACKAGES = ("slurm-wlm", "munge", "libpmix2")
PMIX = Path("/usr/lib/x86_64-linux-gnu/pmix2/lib")

# 16 pretended CPUs; cred_expire makes a requeue take seconds, not two minutes; FirstJobId, since what killed ranks of
# an earlier cluster's job leave in /dev/shm is named after the job (slurm/imagenet.sh).
CONFIGURATION = """
ClusterName=test
FirstJobId={first}
SlurmctldHost={name}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5,socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
JobRequeue=1
ReturnToService=2
MailProg=/bin/true
KillWait=10
MpiDefault=none
GresTypes=gpu
NodeName={name} NodeAddr=127.0.0.1 CPUs=16 RealMemory=4000 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def lacking():
    """Say why there can be no cluster here, after installing what can be installed; None if there can."""
    if os.geteuid() != 0:
        return "it takes root"
    if not all(map(shutil.which, PROGRAMS)):
        if not shutil.which("apt-get"):
            return f"{', '.join(PACKAGES)} are not installed, and there is no apt-get"
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
            done = subprocess.run(
                ["apt-get", "--quiet=2", *command], env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
                stdout=subprocess.DEVNULL, check=False,
            )  # fmt: skip
            if done.returncode:
                return f"apt-get {command[0]} failed"
    if (PMIX / "libpmix.so.2").exists() and not (PMIX / "libpmix.so").exists():
        (PMIX / "libpmix.so").symlink_to("libpmix.so.2")  # srun --mpi=pmix opens the name without a number
    return None


@contextlib.contextmanager
def cluster(folder):
    """Start it and yield the environment that its commands need; stop it whatever happens."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    name = socket.gethostname().split(".")[0]
    first = random.randrange(1_000, 60_000_000)
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(folder=folder, name=name, ports=_free_ports(2), first=first)
    )
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    munge = [f"--{what}={folder}/munge.{ending}" for what, ending in
             (("socket", "socket"), ("key-file", "key"), ("pid-file", "pid"), ("log-file", "log"),
              ("seed-file", "seed"))]  # fmt: skip
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    daemons = []
    try:
        for command in (["munged", "--foreground", "--force", *munge], ["slurmctld", "-D"], ["slurmd", "-D"]):
            daemons.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL,
                                            stderr=subprocess.DEVNULL))  # fmt: skip
            if command[0] == "munged":
                _until((folder / "munge.socket").exists, 10)
        idle = ["sinfo", "-h", "-t", "idle", "-o", "%D"]
        ready = _until(lambda: subprocess.run(idle, env=environment, capture_output=True, check=False).stdout, 30)
        if not ready:
            logs = [(folder / log).read_text()[-2000:] for log in ("slurmctld.log", "slurmd.log")]
            raise RuntimeError("Slurm does not start:\n" + "\n".join(logs))
        yield environment
    finally:
        subprocess.run(["scancel", "--user=root", "--signal=KILL"], env=environment, capture_output=True, check=False)
        time.sleep(1)
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            daemon.kill()


def _until(true, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(0.1)
    return None


def _free_ports(number):
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
