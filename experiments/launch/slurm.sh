#!/bin/bash
# Trains on the GPUs of several nodes under Slurm. From the clone, whose .venv all nodes see:
#
#   sbatch experiments/launch/slurm.sh experiments/quickstart.py --workdir SHARED/runs/quickstart --data-dir SHARED/data
#
#SBATCH --job-name=selfflow
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=2
# One task for each GPU, and every task sees all GPUs of its node: JAX gives each the GPU of its number. No
# --gpus-per-task here: it would hide the others, and with them that number.
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --time=24:00:00
# Ten minutes before the end the tasks, not this script, get SIGTERM, write a checkpoint and exit with status 143.
#SBATCH --signal=TERM@600
#SBATCH --requeue

# JAX may wait without end for the other processes behind a proxy.
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY all_proxy ALL_PROXY

srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" .venv/bin/selfflow train "$@"
status=$?
# That is the highest of the tasks; srun may kill the last of them, with 137, when the first is gone. The job then waits
# in the queue again under its number, and this script goes on with the run.
if [ "$status" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
