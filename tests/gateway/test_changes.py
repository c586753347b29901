# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever is changed about a gateway that serves: no request of eight clients fails, and what is no good is undone.

The clients ask while the change takes place. For more of it, without a pause: TRAFFIC_SECONDS=60.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import venv

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils._litellm import folder_name

from traffic import SECONDS, Client, Traffic

pytestmark = [pytest.mark.gateway, pytest.mark.slow, pytest.mark.timeout(900)]

VARIABLES = {"litellm_workers": 2, "litellm_start_timeout": 180}
# Clients without a rest would take the processors from the release that starts.
PAUSE = 0.0 if SECONDS else 0.3


@pytest.fixture(scope="module")
def gateway(start):
    return start(**VARIABLES)


@pytest.fixture
def change(gateway, installation, backends):
    """Return a function that plays the role with other variables while clients ask; none of them may fail."""
    gateway.declare([backend.deployment() for backend in backends[:2]])

    def change(key=None, expect=0, **variables):
        began = time.monotonic()
        with Traffic(gateway.url, key or gateway.key, "chat", pause=PAUSE) as traffic:
            traffic.wait_for(16)
            code, output = installation.play(litellm_port=gateway.port, **{**VARIABLES, **variables})
            traffic.wait_for(32)
            time.sleep(max(0.0, began + SECONDS - time.monotonic()))
        assert code == expect, output
        traffic.assert_none_failed(least=4)
        return output

    return change


def test_runner_settings_workers_key_and_version_change_at_once(gateway, change, installation, backends):
    """Another lock is another virtual environment; what is in it is the same here, so that nothing is downloaded."""
    runner, pid, program = installation.root / "gateway_runner.py", gateway.status()["pid"], gateway.status()["program"]
    runner.write_text(f"{runner.read_text()}# of another version of the collection\n")
    gateway.wait_until(lambda: gateway.status()["program"] != program)
    former_environment = environment_in_use(installation)
    before = {report["pid"] for report in gateway.reports()}
    former, new = gateway.key, "sk-changed-0123456789"
    stream = LongStream(gateway, backends[3])
    # Clients that get the new key as soon as the run gives it out, and use the former one until then.
    variables = {
        "litellm_router_settings": {"num_retries": 3},
        "litellm_workers": 3,
        "litellm_address": "0.0.0.0",
        "litellm_master_key": new,
        "litellm_requirements": second_environment(installation),
    }
    output = change(key=lambda: gateway.key, litellm_master_key_grace=600, **variables)
    assert (gateway.status()["pid"], gateway.status()["program"]) == (pid, program)
    assert gateway.key == new
    assert new not in output
    assert former not in output
    gateway.wait_until(lambda: len({report["pid"] for report in gateway.reports()} - before) == 3)
    assert gateway.ask(key=former)[0] == 200, "the former key has its time of grace"
    assert gateway.ask(key="sk-wrong")[0] == 401
    for name in ("client_keys.json", "current/gateway.env", "master_key"):
        assert (installation.root / name).stat().st_mode & 0o077 == 0
    assert new not in "".join(path.read_text() for path in (installation.root / "logs").iterdir())
    # What a former worker had in hand it brings to its end, and ends then.
    assert before & {report["pid"] for report in gateway.reports()}
    stream.check()
    gateway.wait_until(lambda: not before & {report["pid"] for report in gateway.reports()})
    assert environment_in_use(installation) != former_environment
    # The one before is kept, to go back to.
    assert {path.name for path in installation.root.glob("venv-*")} >= {
        environment_in_use(installation),
        former_environment,
    }


def test_a_version_that_does_not_work_is_not_served(gateway, change, installation):
    """It installs, starts, and accepts the configuration; that it answers nobody the trial finds out, and no client."""
    broken = second_environment(installation, "import os; os.environ['LITELLM_MASTER_KEY'] = 'sk-broken'")
    before, releases = gateway.status()["serving"], set(os.listdir(installation.root / "releases"))
    output = change(expect=2, litellm_requirements=broken)
    assert "the one before still serves" in output
    assert "it does not answer a request" in output
    assert gateway.status()["serving"] == before == os.readlink(installation.root / "current").rpartition("/")[2]
    assert set(os.listdir(installation.root / "releases")) <= releases, "the one that is no good is gone"


class LongStream:
    """A client with a stream that has begun, and goes on until it is checked."""

    def __init__(self, gateway, backend):
        self._backend, backend.holding = backend, True
        gateway.declare([backend.deployment(id="slow-1", model_group="slow")], purge=False)
        client = Client(gateway.url, "stream", False)
        self._answers = []
        self._thread = threading.Thread(target=lambda: self._answers.append(client.ask(gateway.key, "slow")))
        self._thread.start()
        gateway.wait_until(lambda: backend.asked)

    def check(self):
        assert not self._answers, "the stream was to outlast the change"
        self._backend.holding = False
        self._thread.join()
        assert [(answer.status, answer.problem) for answer in self._answers] == [(200, "")]


def environment_in_use(installation):
    return os.readlink(installation.root / "current" / "venv").rpartition("/")[2]


def second_environment(installation, startup=""):
    """Return a lock whose virtual environment is there already: it borrows the packages of another.

    `startup` is a line of Python, an import first, that each of its programs begins with.
    """
    own = (installation.workplace / "files" / "requirements-linux-x86_64.txt").read_text().rstrip("\n")
    lock = installation.workplace / f"lock-{len(list(installation.workplace.glob('lock-*.txt'))) + 1}.txt"
    lock.write_text(f"{own}\n# {lock.name}\n")
    whole = next(path for path in installation.root.glob("venv-*") if (packages(path) / "litellm").is_dir())
    folder = installation.root / folder_name("venv", lock.read_text().rstrip("\n"), sys.executable)
    venv.create(folder, symlinks=True)
    # Not sitecustomize.py: Debian's Python has one of its own, which is found first.
    (packages(folder) / "borrowed.pth").write_text(f"{packages(whole)}\n{startup}\n")
    script = (whole / "bin" / "litellm").read_text().partition("\n")[2]
    (folder / "bin" / "litellm").write_text(f"#!{folder}/bin/python\n{script}")
    (folder / "bin" / "litellm").chmod(0o755)
    (folder / ".lmfleet-complete").touch()
    return str(lock)


def packages(environment):
    return next((environment / "lib").glob("python3*")).resolve() / "site-packages"
