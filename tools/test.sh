#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# Everything there is to check, the quick first; pytest comes last, so that its summary closes the output.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# More than there are cores: some wait while others compute. tests/conftest.py says what may run side by side.
processes=4

sandbox_down() {
  local realm
  for realm in test $(seq --format "e2e-%g" 0 $((processes - 1))); do
    tests/sandbox/sandbox --realm "$realm" down >/dev/null
  done
}

part() { # TITLE COMMAND...
  local title=$1 started=$SECONDS
  shift
  printf '\n=== %s\n' "$title"
  "$@"
  printf '=== %s: %s s\n' "$title" "$((SECONDS - started))"
}

part 'set up' tools/setup.sh dev sandbox
# A run that was killed may have left sandbox Macs behind, and so may this one.
sandbox_down
trap sandbox_down EXIT
part lint tools/lint.sh
printf '\n=== tests\n'
.venv/bin/pytest --numprocesses "$processes"
