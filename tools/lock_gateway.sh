#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Makes the hash-locked requirements of the gateway anew from requirements.in, requirements-postgres.in and
# requirements-uv.in in roles/litellm/files, and those of the tests with a database.
# Needs uv (UV names it) and Python 3.11 or newer with the package "packaging" (PYTHON names it).
set -eu
cd "$(dirname "$0")/../roles/litellm/files"
tools=../../../tools
python=${PYTHON:-python3}
uv=${UV:-uv}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

compile() { # source, target, options: what the oldest supported Python needs, on all platforms
    source=$1 target=$2
    shift 2
    "$uv" pip compile "$@" --quiet --universal --python-version 3.11 --no-header --no-annotate --only-binary :all: \
        --format pylock.toml --output-file "$target" "$source"
}

write() { # pylock, platform, target, base: without what the base has
    {
        echo "# Made by tools/lock_gateway.sh. Do not edit."
        "$python" "$tools/lock_to_requirements.py" "$1" "$2" ${4:+"$4"}
    } >"$work/requirements.txt"
    cp "$work/requirements.txt" "$3"
}

compile requirements.in "$work/pylock.gateway.toml"
write "$work/pylock.gateway.toml" macos-arm64 requirements-macos-arm64.txt
write "$work/pylock.gateway.toml" linux-x86_64 requirements-linux-x86_64.txt
compile requirements-uv.in "$work/pylock.uv.toml"
write "$work/pylock.uv.toml" all requirements-uv.txt

# What goes on top of the lock for a gateway with a database, in the versions that the lock has.
compile requirements-postgres.in "$work/pylock.postgres.toml" --constraints requirements-macos-arm64.txt
write "$work/pylock.postgres.toml" all requirements-postgres.txt requirements-macos-arm64.txt
tests=../../../tests/gateway/postgres
compile "$tests/requirements.in" "$work/pylock.tests.toml" --no-deps
write "$work/pylock.tests.toml" linux-x86_64 "$tests/requirements.txt"
