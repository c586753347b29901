# SPDX-License-Identifier: GPL-3.0-or-later
"""The task lmstudio_models with files of the controller, on a "Mac" that is this machine."""

from __future__ import annotations

import hashlib
import http.server
import sys
import threading
import time

import pytest
import yaml


@pytest.fixture
def play(controller, inventory, tmp_path):
    """Return a function that plays the tasks, and returns how each ended by its name."""

    def play(*tasks):
        inventory["all"]["vars"].update(ansible_connection="local", ansible_python_interpreter=sys.executable)
        del inventory["all"]["children"]["macs"]["hosts"]["mac-2"]
        told, steps = tmp_path / "told.yml", []
        for name, options in tasks:
            given = {key: options.pop(key) for key in ("check_mode",) if key in options}
            module = {"directory": str(tmp_path / "mac" / "models"), **options}
            steps.append({"lmfleet.mac.lmstudio_models": module, "register": name, "ignore_errors": True, **given})
        names = ", ".join(f"'{name}': {name}" for name, _options in tasks)
        steps.append({"ansible.builtin.copy": {"dest": str(told), "content": f"{{{{ {{{names}}} | to_json }}}}"}})
        run = controller(inventory, steps)
        output = run.communicate(timeout=120)[0]
        assert run.returncode == 0, output
        play.output = output
        return yaml.safe_load(told.read_text())

    return play


def test_a_file_of_the_controller_is_sent_once_and_checked_there(play, tmp_path):
    (tmp_path / "own.gguf").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    partial = tmp_path / "mac" / "partial"
    partial.mkdir(parents=True)
    (partial / f"{digest}.sent").write_bytes(b"wei")  # a run was killed while it sent the file
    own = {"name": "own", "path": "lmfleet/own/own.gguf", "local": str(tmp_path / "own.gguf"), "sha256": digest}
    wrong = {**own, "name": "wrong", "path": "lmfleet/wrong/own.gguf", "sha256": "0" * 64}
    gone = {**own, "name": "gone", "path": "lmfleet/gone/own.gguf", "sha256": "1" * 64, "local": "/nowhere/x.gguf"}
    told = play(
        ("before", {"models": [own], "check_mode": True}),
        ("first", {"models": [own]}),
        ("second", {"models": [own]}),
        ("wrong", {"models": [own, wrong]}),
        ("gone", {"models": [own, gone]}),
    )
    assert told["before"]["changed"] and told["before"]["models"][0]["state"] == "would_fetch"
    assert told["before"]["models"][0]["bytes"] == 7
    assert told["first"]["changed"] and told["first"]["models"][0]["state"] == "fetched"
    assert told["second"]["models"][0]["state"] == "present" and not told["second"]["changed"]
    assert f"model wrong: {own['local']} on the controller: wrong sha256" in told["wrong"]["msg"]
    assert "model gone: cannot be sent" in told["gone"]["msg"] and "/nowhere/x.gguf" in told["gone"]["msg"]
    models = tmp_path / "mac" / "models"
    assert [path.read_bytes() for path in models.rglob("*") if path.is_file()] == [b"weights"]
    assert [path.name for path in partial.iterdir() if not path.name.startswith(".")] == []


@pytest.mark.parametrize("more", [{}, {"read_all": True}, {"server": "text"}, {"sha256": "1" * 64}])
def test_what_a_look_at_the_mac_has_settled_is_not_asked_again(play, tmp_path, more):
    digest = more.pop("sha256", "0" * 64)
    model = {"name": "m", "path": "p/m/m.gguf", "url": "file:///nowhere/m.gguf", "sha256": digest}
    there = {"sha256": "0" * 64, "bytes": 7, "fetched": True}
    folder = str(tmp_path / "mac" / "models")  # where in truth there is nothing
    found = {"directory": folder, "files": {"p/m/m.gguf": there}, "server": None, "user": "admin"}
    told = play(("one", {"models": [model], "found": found, "check_mode": True, **more}))["one"]
    asked = bool(more) or digest != there["sha256"]
    assert told["changed"] is asked
    assert told["models"][0]["state"] == ("would_fetch" if asked else "present")


@pytest.fixture
def slow_server():
    """The address of a file that takes a few seconds."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.send_header("Content-Length", "50")
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            for _part in range(10):
                time.sleep(0.3)
                self.wfile.write(b"12345")

        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/m.gguf"
        server.shutdown()


@pytest.mark.parametrize("interval", [1, 0])
def test_a_long_download_says_how_far_it_is(play, slow_server, tmp_path, interval):
    digest = hashlib.sha256(b"12345" * 10).hexdigest()
    model = {"name": "m", "path": "p/m/m.gguf", "url": slow_server, "sha256": digest}
    told = play(("one", {"models": [model], "progress_interval": interval}))["one"]
    assert told["models"][0]["state"] == "fetched"
    assert ("mac-1: model m: 0.0 of 0.0 GB" in play.output) == bool(interval)
    assert not (tmp_path / "mac" / "partial" / "fetching.json").exists()


def test_an_interval_that_is_no_number_is_told_by_the_module(play):
    told = play(("one", {"models": [], "progress_interval": "often"}))["one"]
    assert told["failed"] and "progress_interval" in told["msg"] and "often" in told["msg"]
