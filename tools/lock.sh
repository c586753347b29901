#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# Makes every lock file anew from its .in file: exact versions and hashes, valid on Python 3.11 to 3.14 and on
# Linux and macOS. No index address is written, so the files install from whatever index pip is set up with.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export UV=$PWD/.venv/bin/uv PYTHON=$PWD/.venv/bin/python

compile() { # NAME [OPTION...]
  local name=$1
  shift
  printf 'lock: requirements/%s.txt\n' "$name"
  "$UV" pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
    --no-config --no-emit-index-url --no-emit-find-links --no-annotate \
    --custom-compile-command 'make lock' "$@" "requirements/$name.in" --output-file "requirements/$name.txt"
}

compile installer
compile controller
# The tests run against exactly the controller that users get.
compile dev --constraints requirements/controller.txt

echo 'lock: the gateway'
tools/lock_gateway.sh
