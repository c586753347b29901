#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# Everything there is to check, the quick first; pytest comes last, so that its summary closes the output.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

sandbox_down() {
  local realm
  for realm in test e2e e2e-2 e2e-3; do
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
part sanity .venv/bin/python tests/sanity/run.py
printf '\n=== tests\n'
# Three at a time: they wait more than they compute. tests/conftest.py says what may.
.venv/bin/pytest --numprocesses 3
