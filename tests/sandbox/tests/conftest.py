# SPDX-License-Identifier: GPL-3.0-or-later
"""Two sandbox Macs for all tests of the sandbox, and jobs on them that are cleaned away."""

from __future__ import annotations

import itertools

import pytest

from lmfleet_sandbox.testing import Job, SshMac, realm_up

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def realm():
    """The realm of the tests, with two Macs up."""
    try:
        with realm_up(2) as one:
            yield one
    except RuntimeError as reason:
        pytest.skip(str(reason))


def _ssh_mac(realm, number):
    mac = SshMac(realm.mac(number))
    yield mac
    mac.close()


@pytest.fixture(scope="session")
def mac(realm):
    """mac-1."""
    yield from _ssh_mac(realm, 1)


@pytest.fixture(scope="session")
def other_mac(realm):
    """mac-2: the one that is rebooted and has its knobs turned."""
    yield from _ssh_mac(realm, 2)


@pytest.fixture
def make_job(mac):
    """Makes a job on mac-1 and writes its property list; all of them are removed after the test."""
    jobs: list[Job] = []

    def make(script: str | None = None, domain: str = "system", on: SshMac = mac, binary: bool = False, **keys) -> Job:
        folder = {"system": "/Library/LaunchDaemons", "gui": "Library/LaunchAgents"}[domain.split("/")[0]]
        label = f"test.job.{next(_numbers)}"
        spec = {"ProgramArguments": ["/bin/sh", "-c", script], **keys} if script else keys
        job = Job(on, domain, label, spec, folder if folder.startswith("/") else f"/Users/admin/{folder}", binary)
        job.write()
        jobs.append(job)
        return job

    yield make
    for job in jobs:
        job.remove()
