#!/usr/bin/env bash
# Train ResNet-50 on ImageNet by majority vote of signs:
#     IMAGENET=/datasets/imagenet sbatch slurm/imagenet.sh [options of mpisign.train]
# Edit this header; options of sbatch override it. One task a GPU.
#SBATCH --job-name=mpisign-imagenet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%x-%j.out
# Your site may want more: remove one # from the lines it needs. sinfo -s lists partitions; sacctmgr show associations
# user=$USER format=account your accounts; sinfo -o "%P %G" what goes after --gres= (without GPUs, no --gres).
##SBATCH --partition=NAME
##SBATCH --account=NAME
# Before its time is up the job leaves a checkpoint, is put back into the queue and goes on with the same output.
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

# VENV: the environment that mpisign is in, on a file system that all nodes share (VENV= is the python on the PATH).
# LAUNCH: what starts the ranks and belongs to that environment's MPI: srun --mpi=pmi2 for MPICH and its kin,
# srun --mpi=pmix for Open MPI (srun --mpi=list tells which there are), or an mpirun. The wrong one starts each rank
# alone; mpisign says so and stops. --wait=60: no rank outlives the first one's end by more than a minute.
# If mpisign was installed with a module's MPI or Python, load the same module here:
# module load NAME
VENV=${VENV-.venv}
LAUNCH=${LAUNCH:-srun --mpi=pmi2 --wait=60}

cd "${SLURM_SUBMIT_DIR:?is not set: start this with sbatch}" || exit 2
python=${VENV:+$VENV/bin/}python
"$python" -c 'import mpisign' || { echo "no mpisign in $python: see README.md, or set VENV"; exit 2; }
[ -n "${IMAGENET-}" ] || { echo "IMAGENET is not set: it must name the folder with train/ and val/"; exit 2; }

job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+-$SLURM_ARRAY_TASK_ID}
[ -z "${SLURM_CPUS_PER_TASK-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun does not take it by itself

# MPICH names its shared memory after job and step, and a job put back keeps both: what killed ranks left there would be
# taken for the new ranks' own.
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then
    srun --ntasks-per-node=1 --ntasks="$SLURM_NNODES" bash -c 'rm -f /dev/shm/mpich_{shm,vci}_*' 2>/dev/null
fi

trap 'signalled=yes; kill -USR1 $ranks' USR1
trap 'kill -USR1 $ranks' TERM # on TERM, srun would kill the ranks

# In the background, for bash handles signals only then; each of an array of jobs (sbatch --array=1-5) has its own seed.
$LAUNCH "$python" -m mpisign.train --data "$IMAGENET" --model resnet50 --seed "${SLURM_ARRAY_TASK_ID:-0}" \
    --output "runs/imagenet-$job" --resume "$@" &
ranks=$!
wait $ranks
code=$?
while kill -0 $ranks 2>/dev/null; do # a signal interrupts wait
    wait $ranks
    code=$?
done

# 85: told to stop, checkpoint left. If scancel told it to, it stays stopped.
[ "$code" = 85 ] && [ "${signalled-}" = yes ] && exec scontrol requeue "$SLURM_JOB_ID"
exit "$code"
