# SPDX-License-Identifier: GPL-3.0-or-later
"""Run ``ansible-test sanity`` on the collection as it ships, and make sure that it really tested something.

ansible-test insists on a folder ``…/ansible_collections/<namespace>/<name>``; behind symbolic links it finds "no tests
applicable" and calls that a success. So the collection is built and unpacked into such a folder, and the tests that ran
are compared with the tests there are. The virtual environments of ansible-test stay in ``.cache/sanity`` for the next
run; nothing is written to the home of the user.

Usage: ``.venv/bin/python tests/sanity/run.py [--test NAME]``
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
CACHE = REPOSITORY / ".cache" / "sanity"
LOG = CACHE / "log"
# Have nothing to look at here (there is no PowerShell and no __init__.py), or need a program that few machines have.
MAY_NOT_APPLY = {"empty-init", "pslint", "shellcheck"}
RUNNING = re.compile(r'Running sanity test "(?P<name>[^"]+)"(?: on Python (?P<python>\S+))?')
NOTHING_TO_TEST = "No tests applicable."
FINDING = re.compile(r"ERROR: |FATAL: |Traceback")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--test", help="run this test only", metavar="NAME")
    only = parser.parse_args().test

    if ignore_files := [path.name for path in Path(__file__).parent.glob("ignore*.txt")]:
        print(f"sanity: remove {', '.join(ignore_files)} from tests/sanity, and mend what they hide")
        return 1

    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lmfleet-sanity-") as folder:
        collection = unpack_collection(Path(folder))
        environment = private_environment(Path(folder) / "bin")
        expected = {only} if only else list_tests(collection, environment) - MAY_NOT_APPLY
        returncode, ran = run_tests(["--test", only] if only else [], collection, environment)

    names = {name for name, python in ran}
    if missing := expected - names:
        print(f"sanity: these tests did not look at anything: {', '.join(sorted(missing))}; see {LOG}")
        return 1
    if returncode:
        print(f"sanity: FAILED; all its output is in {LOG}")
        return 1
    pythons = " and ".join(sorted({python for name, python in ran if name == "import"}, key=version_key))
    print(
        f"sanity: {len(names)} tests ok{', imports on Python ' + pythons if pythons else ''},"
        f" {time.monotonic() - started:.0f} s"
    )
    return 0


def unpack_collection(folder: Path) -> Path:
    """Build the collection and unpack it below ``folder``; return its folder there."""
    subprocess.run(
        [BIN / "ansible-galaxy", "collection", "build", "--output-path", folder],
        cwd=REPOSITORY,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    galaxy = yaml.safe_load((REPOSITORY / "galaxy.yml").read_text())
    collection = folder / "ansible_collections" / galaxy["namespace"] / galaxy["name"]
    collection.mkdir(parents=True)
    subprocess.run(["tar", "-xzf", next(folder.glob("*.tar.gz")), "-C", collection], check=True)
    (collection / "tests").mkdir(exist_ok=True)
    shutil.copy2(REPOSITORY / "tests" / "config.yml", collection / "tests")
    return collection


def private_environment(bin_folder: Path) -> dict[str, str]:
    """Return an environment with a home of its own, in which ansible-test finds only Pythons that work.

    Args:
        bin_folder: where to put links to these Pythons.
    """
    bin_folder.mkdir()
    # Beside the controller's own: the one that Apple ships, where this machine has it.
    if python := find_python("3.9"):
        (bin_folder / "python3.9").symlink_to(python)
    home = CACHE / "home"
    downloads = home / ".ansible" / "test" / "cache"
    downloads.mkdir(parents=True, exist_ok=True)
    # ansible-test of ansible-core 2.19 and 2.21 looks here before it downloads a script of that name.
    for pip_version in ("24_2", "25_2"):
        shutil.copy2(Path(__file__).with_name("get_pip.py"), downloads / f"get_pip_{pip_version}.py")
    return {**os.environ, "HOME": str(home), "PATH": f"{BIN}:{bin_folder}:/usr/bin:/bin:/usr/sbin:/sbin"}


def find_python(version: str) -> str | None:
    """Return the path of a working Python of this ``version``, such as 3.9; the pyenv shim of an inactive one fails."""
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"))
    for candidate in filter(None, (shutil.which(f"python{version}"), *pyenv)):
        answer = subprocess.run(
            [candidate, "-c", "import sys, ensurepip, venv; print(sys.executable)"],
            capture_output=True,
            text=True,
            check=False,
        )
        if answer.returncode == 0:
            return answer.stdout.strip()
    return None


def list_tests(collection: Path, environment: dict[str, str]) -> set[str]:
    """Return the names of the tests that this ansible-test has for a collection."""
    command = [BIN / "ansible-test", "sanity", "--list-tests"]
    answer = subprocess.run(command, cwd=collection, env=environment, check=True, capture_output=True, text=True)
    return set(answer.stdout.split())


def run_tests(
    options: list[str], collection: Path, environment: dict[str, str]
) -> tuple[int, set[tuple[str, str | None]]]:
    """Run the tests, show what they find, and return the exit code and (test, Python version) of each that ran."""
    command = [BIN / "ansible-test", "sanity", "-v", "--color", "no", "--local", "--requirements", *options]
    ran: list[tuple[str, str | None]] = []
    with (
        LOG.open("w") as log,
        subprocess.Popen(
            command, cwd=collection, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        for line in process.stdout:
            log.write(line)
            if match := RUNNING.match(line):
                ran.append((match["name"], match["python"]))
            elif line.startswith(NOTHING_TO_TEST):
                ran.pop()
            elif FINDING.match(line):
                print(line, end="", flush=True)
    return process.returncode, set(ran)


def version_key(version: str | None) -> tuple[int, ...]:
    return tuple(int(part) for part in (version or "0").split("."))


if __name__ == "__main__":
    sys.exit(main())
