#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# Style and documentation of everything, with no exceptions listed anywhere. Goes on after a failure, to show all.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PWD/.venv/bin:$PATH

failed=0

check() { # TITLE COMMAND...
  local title=$1 started=$SECONDS output
  shift
  printf 'lint: %s ... ' "$title"
  if output=$("$@" 2>&1); then
    printf 'ok, %s s\n' "$((SECONDS - started))"
  else
    printf 'FAILED, %s s\n%s\n' "$((SECONDS - started))" "$output"
    failed=1
  fi
}

check 'Python (ruff)' ruff check --quiet .
check 'Python format (ruff; make format mends it)' ruff format --check --quiet --diff .
check 'Ansible content (ansible-lint, profile production)' ansible-lint --nocolor
check 'collection documentation (antsibull-docs)' \
  antsibull-docs lint-collection-docs --plugin-docs --validate-collection-refs self .
check 'changelog (antsibull-changelog)' antsibull-changelog lint
exit $failed
