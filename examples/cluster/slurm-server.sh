#!/bin/bash
# A model whose cache and second copy want GPUs of their own: one node serves, the other trains.
#
#   sbatch examples/cluster/slurm-server.sh              # the same command goes on after a requeue
#
# vLLM divides its copy over the first node's GPUs as it likes, and reads each changed layer from the run folder. On the
# second node every GPU holds the whole policy, of which only one layer has optimizer states.
# vLLM's development mode lets whoever reaches its port do anything: keep it inside the cluster.
#SBATCH --job-name=autolayer
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=autolayer-%j.log
set -eu

MODEL=${MODEL:-Qwen/Qwen3-32B}
SHARED=${SHARED:-$HOME/autolayer-runs}
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-64}
mapfile -t NODES < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
SERVER=http://${NODES[0]}:8000

srun --nodes=1 --ntasks=1 --nodelist="${NODES[0]}" env VLLM_SERVER_DEV_MODE=1 \
  vllm serve "$MODEL" --dtype bfloat16 --logprobs-mode processed_logprobs --tensor-parallel-size 8 --port 8000 &
serving=$!
trap 'kill $serving' EXIT
until curl --noproxy '*' --silent --fail "$SERVER/health"; do
  kill -0 $serving  # or it ended, and its log says why
  sleep 5
done

srun --nodes=1 --ntasks=1 --nodelist="${NODES[1]}" accelerate launch --multi_gpu --num_processes 8 -m \
  autolayer pick --model "$MODEL" --task math --rollouts "$SERVER" --activation-checkpointing --out "$SHARED/qwen3-32b-math"
