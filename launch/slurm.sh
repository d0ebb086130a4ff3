#!/usr/bin/env bash
# One process on every GPU node of a SLURM allocation, as a batch job.
#
#   launch/slurm.sh --nodes=4 --gpus=8 --time=24:00:00 --dry_run -- \
#     python -m train.pretrain --config=configs/llama3_8b.py --workdir=runs/8b
#
# The environment is this folder's .venv, on a disk that all nodes see, installed
# with the extra `cuda12` or `cuda13`. SLURM says who leads. Two minutes before
# the time is over the run is asked to save, exits with 75 and is queued again.
set -euo pipefail
source "$(dirname "$0")/arguments.sh"

nodes="" gpus=8 time=24:00:00 name=throughline
parse "$@"
require nodes
script=$(cat <<JOB
#!/usr/bin/env bash
#SBATCH --job-name=$name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=$gpus
#SBATCH --time=$time
#SBATCH --requeue
#SBATCH --signal=TERM@120
export PATH=\$PWD/.venv/bin:\$PATH
code=0
srun --kill-on-bad-exit=1 $(quoted "${command[@]}") || code=\$?
if [ "\$code" = 75 ]; then scontrol requeue "\$SLURM_JOB_ID"; fi
exit "\$code"
JOB
)
show_input "$script" sbatch
