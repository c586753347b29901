# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs of several files in one."""

from __future__ import annotations

import subprocess
import sys

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _zipapp


def test_python_runs_it_and_the_same_files_give_the_same_bytes(tmp_path):
    files = {"package/__init__.py": "word = 'ran'", "__main__.py": "from package import word; print(word)"}
    file = tmp_path / "program.pyz"
    file.write_bytes(_zipapp.build(files))
    result = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, check=True)
    assert result.stdout == "ran\n"
    assert _zipapp.build(dict(reversed(files.items()))) == file.read_bytes()
    assert _zipapp.build({**files, "package/__init__.py": "word = 1"}) != file.read_bytes()


def test_without_a_main_there_is_nothing_to_run():
    with pytest.raises(ValueError, match=r"no __main__.py among its files \(x.py\)"):
        _zipapp.build({"x.py": ""})
