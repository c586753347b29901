# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a download is: what is asked of the Mac, and what is made of the answer."""

from __future__ import annotations

import json
import subprocess
import time

import pytest
from ansible_collections.lmfleet.mac.plugins.plugin_utils import progress

TOLD = {"name": "m", "total": 40_000_000_000, "number": 1, "of": 1}


def printed(**changes):
    return json.dumps({**TOLD, **changes}) + "\n 12300000000\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (printed(), "model m: 12.3 of 40.0 GB"),
        (printed(number=2, of=3), "model m: 12.3 of 40.0 GB, file 2 of 3"),
        (printed(total=None), "model m: 12.3 GB"),
        ("", None),
        ("12300000000\n", None),
        ("{}\n1\n", None),
        ('{"name": "m"\n1\n', None),
        (printed().replace("12300000000", "wc: no such file"), None),
    ],
)
def test_the_line(text, expected):
    assert progress.line(text) == expected


def test_the_command_reads_what_the_module_writes(tmp_path):
    folder = tmp_path / "with space"
    folder.mkdir()
    (folder / "x.part").write_bytes(b"x" * 5)
    fetching = folder / "fetching.json"
    fetching.write_text(json.dumps({**TOLD, "part": str(folder / "x.part")}))
    shell = subprocess.run(
        ["/bin/sh", "-c", progress.command(str(fetching))], capture_output=True, text=True, check=False
    )
    assert progress.line(shell.stdout) == "model m: 0.0 of 40.0 GB" and shell.stdout.split()[-1] == "5"
    fetching.write_text(json.dumps({**TOLD, "part": str(folder / "home")}))
    (folder / "home").mkdir()
    (folder / "home" / "x").write_bytes(b"x" * (3 << 20))
    shell = subprocess.run(
        ["/bin/sh", "-c", progress.command(str(fetching))], capture_output=True, text=True, check=False
    )
    assert 3 << 20 <= int(shell.stdout.split()[-1]) < 4 << 20
    fetching.unlink()
    shell = subprocess.run(
        ["/bin/sh", "-c", progress.command(str(fetching))], capture_output=True, text=True, check=False
    )
    assert progress.line(shell.stdout) is None


def test_a_mac_that_does_not_answer_disturbs_nothing():
    answers, shown = iter([OSError("gone"), {"stdout": printed()}]), []

    def run(_command):
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    with progress.told(run, shown.append, "/f", 0.01):
        deadline = time.monotonic() + 10
        while not shown:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert shown == ["model m: 12.3 of 40.0 GB"]
