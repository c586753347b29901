# SPDX-License-Identifier: GPL-3.0-or-later
"""``llmster bootstrap``: install the unpacked archive into $HOME/.lmstudio."""

from __future__ import annotations

import os
import shutil
import sys

from llmster_standin import home


def main(program, version_folder):
    """Install the archive that ``program`` was unpacked from. Returns the exit code.

    Asks on the terminal unless LMS_BOOTSTRAP_INSTALL_SH=1; edits the shell profile unless LMS_NO_MODIFY_PATH=1.
    """
    if os.environ.get("LMS_BOOTSTRAP_INSTALL_SH") != "1":
        sys.stdout.write("Install llmster for this user? (Y/n) ")
        sys.stdout.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            sys.stderr.write("Aborted.\n")
            return 1
    source = os.path.dirname(os.path.realpath(program))
    lmstudio = home.lmstudio_home()
    target = os.path.join(lmstudio, "llmster", version_folder)
    if os.path.realpath(target) != source:
        _copy(source, target)
    _write_lms(os.path.join(source, ".bundle", "lms"), os.path.join(lmstudio, "bin", "lms"), version_folder)
    installed = os.path.join(target, "llmster")
    location = {"path": installed, "argv": [installed], "cwd": target}
    home.write_json(home.internal("llmster-install-location.json"), location)
    if os.environ.get("LMS_NO_MODIFY_PATH") != "1":
        edit_profile(os.path.join(lmstudio, "bin"))
    sys.stderr.write(f"llmster installed in {target}\n")
    return 0


def _copy(source, target):
    """Copy in two steps, so that a killed bootstrap leaves no half-filled version folder."""
    partial = target + ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(partial)
    shutil.copy2(os.path.join(source, "llmster"), partial)
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(os.path.join(source, ".bundle"), os.path.join(partial, ".bundle"), ignore=skip)
    shutil.rmtree(target, ignore_errors=True)
    os.rename(partial, target)


def _write_lms(source, target, version_folder):
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(source, encoding="utf-8") as file:
        text = file.read()
    temporary = target + ".partial"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text.replace("@VERSION@", version_folder))
    os.chmod(temporary, 0o755)
    os.replace(temporary, target)


def edit_profile(folder):
    """Put a folder on PATH in the shell profile."""
    profile = os.path.join(home.user_home(), ".zprofile")
    line = f'export PATH="$PATH:{folder}"\n'
    try:
        with open(profile, encoding="utf-8") as file:
            if line in file.read():
                return
    except OSError:
        pass
    with open(profile, "a", encoding="utf-8") as file:
        file.write("\n# Added by LM Studio CLI (lms)\n" + line)
