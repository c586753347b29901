# SPDX-License-Identifier: GPL-3.0-or-later
"""The logs of an instance stay small."""

from __future__ import annotations

import os
import subprocess
import sys

from instance_runner import logs
from instance_runner.files import Places


def test_a_log_within_its_limit_is_left_alone(tmp_path):
    log = tmp_path / "runner.log"
    log.write_text("1234")
    assert not logs.rotate(str(log), 4, 2) and os.listdir(tmp_path) == ["runner.log"]
    assert not logs.rotate(str(tmp_path / "none"), 4, 2)


def test_older_logs_move_up_and_the_oldest_goes(tmp_path):
    log = tmp_path / "runner.log"
    for text in ("first", "second", "third"):
        with open(log, "a") as stream:
            stream.write(text)
        assert logs.rotate(str(log), 4, 2)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "runner.log": "",
        "runner.log.1": "third",
        "runner.log.2": "second",
    }
    log.write_text("fourth")
    logs.rotate(str(log), 4, 0)  # a smaller number takes effect on what is there
    assert os.listdir(tmp_path) == ["runner.log"]


def test_a_program_that_holds_the_log_open_goes_on_at_its_start(tmp_path):
    log = tmp_path / "runner.log"
    say = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
    with (
        open(log, "w") as stream,  # not for appending: append_only() is what makes it so
        subprocess.Popen([sys.executable, "-c", say], stdin=subprocess.PIPE, stdout=stream, text=True) as program,
    ):
        logs.append_only(stream.fileno())
        program.stdin.write("before the cut\n")
        program.stdin.flush()
        while log.read_text() != "before the cut\n":
            pass
        logs.rotate(str(log), 4, 1)
        program.stdin.write("after\n")
        program.stdin.close()
        program.wait()
    assert log.read_text() == "after\n" and (tmp_path / "runner.log.1").read_text() == "before the cut\n"


def test_the_own_logs_of_lm_studio_are_bounded_in_number_and_size(tmp_path):
    for age, name in enumerate(("2026-03/2026-03-02.2.log", "2026-03/2026-03-02.1.log", "2026-02/2026-02-28.1.log")):
        file = tmp_path / "server-logs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x" * 10)
        os.utime(file, (1000 - age, 1000 - age))
    logs.prune(str(tmp_path / "server-logs"), 5, 1)
    left = {str(file.relative_to(tmp_path)): file.stat().st_size for file in tmp_path.rglob("*.log")}
    assert left == {"server-logs/2026-03/2026-03-02.2.log": 0, "server-logs/2026-03/2026-03-02.1.log": 10}
    assert not (tmp_path / "server-logs" / "2026-02").exists()


def test_a_folder_that_cannot_be_written_is_said_not_fatal(tmp_path, monkeypatch, capsys):
    places = Places(str(tmp_path))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "runner.log").write_text("long enough")

    def refuse(*_arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "truncate", refuse)
    logs.keep_small(places, 4, 1)
    assert "cannot rotate the logs" in capsys.readouterr().out
