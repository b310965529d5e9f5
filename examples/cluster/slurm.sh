#!/bin/bash
# Finding the layer on several nodes: every task of the array is a worker, and all run the same command.
#
#   sbatch examples/cluster/slurm.sh                     # eight workers
#   sbatch --array=0-1 examples/cluster/slurm.sh         # two more join later, by the same command
#
# Workers share the run folder (a file system that all nodes see) and the database. One that is killed, preempted or out
# of time is noticed after two minutes, and another goes on from its arm's checkpoint: requeueing loses nothing.
#SBATCH --job-name=autolayer
#SBATCH --array=0-7
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --output=autolayer-%A-%a.log
set -eu

# A PostgreSQL server that all nodes reach. Its password belongs into ~/.pgpass or PGPASSWORD, not into this file.
STORAGE=${STORAGE:-postgresql+pg8000://autolayer@db.example.org/autolayer}
SHARED=${SHARED:-$HOME/autolayer-runs}

# Each arm on one GPU. Where a model needs the memory or the speed of several, let a worker be one node's processes:
#   --gpus-per-node=8, and  accelerate launch --multi_gpu --num_processes 8 -m autolayer pick ...
autolayer pick --model Qwen/Qwen3-8B --task math --storage "$STORAGE" --out "$SHARED/qwen3-8b-math"
