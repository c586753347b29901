# SPDX-License-Identifier: GPL-3.0-or-later
"""One gateway for all tests of a module. Its software is installed once and kept in the cache."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import pytest

from gateway_under_test import CACHE, REPOSITORY, BackendServer, Gateway, Installation, free_port


@pytest.fixture(scope="session")
def _servers():
    servers = [BackendServer(name) for name in "abcd"]
    for server in servers:
        server.run()
    yield servers
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def backends(_servers):
    if any(server.failing for server in _servers):
        # Let the cooldown of those that failed in another test pass.
        time.sleep(1.5)
    for server in _servers:
        server.calm()
    return _servers


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """An installation that is kept between runs, to take the virtual environments from."""
    fill = [sys.executable, str(REPOSITORY / "tests" / "sandbox" / "fill_wheels.py"), "--cache", str(CACHE)]
    subprocess.run(fill, check=True, timeout=600)
    root = CACHE / "gateway-{}.{}".format(*sys.version_info[:2])
    Installation(root, tmp_path_factory.mktemp("install")).configure()
    return root


@pytest.fixture(scope="session")
def installation(installed, tmp_path_factory):
    """A fresh folder of a gateway that has its software already."""
    root = tmp_path_factory.mktemp("gateway") / "gateway"
    root.mkdir()
    for venv in [path for path in installed.iterdir() if re.fullmatch(r"(venv|tools)-\w+", path.name)]:
        (root / venv.name).symlink_to(venv)
    return Installation(root, tmp_path_factory.mktemp("play"))


@pytest.fixture(scope="module")
def start(installation):
    """Return a function that configures and starts a gateway; it is stopped after the module."""
    running = []

    def start(**variables):
        port = free_port()
        installation.configure(litellm_port=port, **variables)
        for leftover in (installation.root / "registry").rglob("*.json"):
            leftover.unlink()
        running.append(Gateway(installation, port))
        running[-1].wait()
        return running[-1]

    yield start
    for gateway in running:
        gateway.stop()
