#!/usr/bin/env bash
# Does the vote pay on these nodes? The table goes to the job's output, the record to results/<machine>/:
#     sbatch slurm/bench.sh [options of mpisign.bench]
# Edit this header; options of sbatch override it. One task a GPU.
#SBATCH --job-name=mpisign-bench
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=8
#SBATCH --time=00:30:00
#SBATCH --exclusive
#SBATCH --output=slurm-%x-%j.out
# Your site may want more: remove one # from the lines it needs. sinfo -s lists partitions; sacctmgr show associations
# user=$USER format=account your accounts; sinfo -o "%P %G" what goes after --gres= (without GPUs, no --gres).
##SBATCH --partition=NAME
##SBATCH --account=NAME

# VENV and LAUNCH: see imagenet.sh. If mpisign was installed with a module's MPI or Python, load the same one here:
# module load NAME
VENV=${VENV-.venv}
LAUNCH=${LAUNCH:-srun --mpi=pmi2 --wait=60}

cd "${SLURM_SUBMIT_DIR:?is not set: start this with sbatch}" || exit 2
python=${VENV:+$VENV/bin/}python
"$python" -c 'import mpisign' || { echo "no mpisign in $python: see README.md, or set VENV"; exit 2; }
[ -z "${SLURM_CPUS_PER_TASK-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun does not take it by itself
exec $LAUNCH "$python" -m mpisign.bench --model resnet50 "$@"
