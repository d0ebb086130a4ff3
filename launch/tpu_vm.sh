#!/usr/bin/env bash
# One process on every host of a TPU slice (Cloud TPU VM), with gcloud.
#
#   launch/tpu_vm.sh --name=pod --zone=us-east5-a --dry_run -- \
#     python -m train.pretrain --config=configs/llama3_8b.py --workdir=gs://b/run
#
# The slice exists already; the code is copied to every host and installed. Hosts
# find each other by themselves. SIGTERM saves and exits with 75: start again.
set -euo pipefail
source "$(dirname "$0")/arguments.sh"

name="" zone=""
parse "$@"
require name zone
where=("$name" "--zone=$zone" "--worker=all")
show tar --exclude-vcs --exclude=.venv --exclude=runs -czf /tmp/throughline.tgz .
show gcloud compute tpus tpu-vm scp /tmp/throughline.tgz "${where[0]}":~ \
  "${where[@]:1}"
show gcloud compute tpus tpu-vm ssh "${where[@]}" --command="$(
  printf '%s' "mkdir -p throughline && tar -xzf throughline.tgz -C throughline" \
    " && cd throughline && python3 -m venv .venv" \
    " && .venv/bin/pip install -q -c constraints.txt -e '.[tpu]'"
)"
show gcloud compute tpus tpu-vm ssh "${where[@]}" \
  --command="cd throughline && PATH=.venv/bin:\$PATH $(quoted "${command[@]}")"
