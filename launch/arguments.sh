# What the launchers share: sourced, not run.
# shellcheck shell=bash disable=SC2034

dry_run=""
command=()

# Reads --key=value into variables, --dry_run, and what stands behind `--`.
parse() {
  while [ $# -gt 0 ]; do
    case "$1" in
      --dry_run) dry_run=1 ;;
      --) shift; command=("$@"); break ;;
      --[a-z]*=*) local key=${1%%=*}; printf -v "${key#--}" '%s' "${1#*=}" ;;
      *) echo "error: $1 is no --key=value; the command stands behind --" >&2
         exit 2 ;;
    esac
    shift
  done
  if [ ${#command[@]} = 0 ]; then
    echo "error: no command: end with -- python -m train.pretrain ..." >&2
    exit 2
  fi
}

# Stops unless every name has a value.
require() {
  local name
  for name in "$@"; do
    if [ -z "${!name:-}" ]; then
      echo "error: --$name=... is missing" >&2
      exit 2
    fi
  done
}

# A command as one line that a shell reads back to the same words.
quoted() { printf '%q ' "$@"; }

# Prints a command, and runs it unless --dry_run.
show() {
  quoted "$@"; echo
  if [ -z "$dry_run" ]; then "$@"; fi
}

# The same for a command that reads its input.
show_input() {
  local input=$1; shift
  printf '%s\n' "$input"
  quoted "$@"; echo
  if [ -z "$dry_run" ]; then printf '%s\n' "$input" | "$@"; fi
}
