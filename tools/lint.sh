#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# Style and documentation of everything, with no exceptions listed anywhere. Goes on after a failure, to show all.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PWD/.venv/bin:$PATH

outputs=$(mktemp -d)
failed=0
titles=() checks=()
trap 'kill "${checks[@]}" 2>/dev/null || true; rm -rf "$outputs"' EXIT
trap 'exit 1' INT TERM

check() { # TITLE COMMAND...: begin it, beside the others
  local title=$1
  shift
  "$@" >"$outputs/${#titles[@]}" 2>&1 &
  checks+=($!) titles+=("$title")
}

check 'Python (ruff)' ruff check --quiet .
check 'Python format (ruff; make format mends it)' ruff format --check --quiet --diff .
check 'Ansible content (ansible-lint, profile production)' ansible-lint --nocolor
check 'collection documentation (antsibull-docs)' \
  antsibull-docs lint-collection-docs --plugin-docs --validate-collection-refs self .
check 'changelog (antsibull-changelog)' antsibull-changelog lint

for number in "${!titles[@]}"; do
  printf 'lint: %s ... ' "${titles[number]}"
  if wait "${checks[number]}"; then
    printf 'ok\n'
  else
    printf 'FAILED\n%s\n' "$(cat "$outputs/$number")"
    failed=1
  fi
done
exit $failed
