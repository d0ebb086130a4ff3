#!/usr/bin/env bash
# One process on every host of one or more TPU slices on GKE, as a JobSet by xpk.
#
#   launch/gke.sh --name=run1 --cluster=pods --type=v5p-256 --slices=2 \
#     --image=gcr.io/project/throughline --dry_run -- \
#     python -m train.pretrain --config=configs/llama3_70b.py --workdir=gs://b/run
#
# --image holds this code, installed with the extra `tpu`. A pod that exits with
# 75 was preempted and saved; the JobSet starts it again.
set -euo pipefail
source "$(dirname "$0")/arguments.sh"

name="" cluster="" type="" image="" slices=1
parse "$@"
require name cluster type image
show xpk workload create --workload="$name" --cluster="$cluster" \
  --tpu-type="$type" --num-slices="$slices" --docker-image="$image" \
  --max-restarts=100 --restart-on-exit-codes=75 \
  --command="$(quoted "${command[@]}")"
