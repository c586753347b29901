#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# Everything there is to check, the quick first; pytest comes last, so that its summary closes the output.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# More than there are cores: they wait more than they compute. tests/conftest.py says what may run side by side.
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

finished_sanity() {
  local code=0
  wait "$sanity" || code=$?
  cat .cache/sanity.log
  return "$code"
}

part 'set up' tools/setup.sh dev sandbox
# A run that was killed may have left sandbox Macs behind, and so may this one.
sandbox_down
trap sandbox_down EXIT
# Side by side: each leaves a core idle. In a session of its own, so that it can be ended with all that it started.
setsid .venv/bin/python tests/sanity/run.py >.cache/sanity.log 2>&1 &
sanity=$!
trap 'kill -- "-$sanity" 2>/dev/null || true; sandbox_down' EXIT
part lint tools/lint.sh
part sanity finished_sanity
printf '\n=== tests\n'
.venv/bin/pytest --numprocesses "$processes"
