# SPDX-License-Identifier: GPL-3.0-or-later
"""Another version of LM Studio: from the controller's disk, up, and back down without a download."""

from __future__ import annotations

import pytest

from as_declared import assert_as_declared
from fleet_under_test import NETWORK, REPOSITORY, Run

pytestmark = [pytest.mark.e2e, pytest.mark.sandbox, pytest.mark.timeout(600)]

OLD, NEW = "0.0.24-1", "0.0.25-1"
NOWHERE = f"http://{NETWORK}.1:9/llmster"


@pytest.fixture
def change_to(fleet, tmp_path):
    """Return a function that runs site.yml on one Mac with a version; once more on request, which changes nothing."""

    def change_to(version: str, again: bool = False, **variables) -> Run:
        wanted = fleet.copy(tmp_path)
        wanted.variables["macs"].update(lmstudio_version=version, **variables)
        run = wanted.play("--limit", "mac-2", "--diff").succeeded()
        assert run.changed["mac-2"] > 0
        for instance in ("chat-a", "chat-b"):
            assert f"/llmster/{version}/" in wanted.wait_until_ready("mac-2", instance)["llmster"]
        if again:
            assert wanted.play("--limit", "mac-2").succeeded().changed == {"mac-2": 0}
        assert_as_declared(wanted, "mac-2")
        return run

    return change_to


def versions(fleet):
    return fleet.on("mac-2", "ls /Users/admin/.lmfleet/llmster").split()


def test_an_archive_of_the_controller_needs_no_network(fleet, change_to):
    archive = REPOSITORY / ".cache" / "mirror" / "llmster" / f"{OLD}-darwin-arm64.full.tar.gz"
    change_to(OLD, lmstudio_archive=str(archive), lmstudio_download_url=NOWHERE)
    assert versions(fleet) == [OLD, "selected.json"]


def test_an_upgrade_keeps_the_version_before(fleet, change_to):
    change_to(NEW, again=True).said(f"+{NEW}")
    assert versions(fleet) == [OLD, NEW, "selected.json"]


def test_going_back_needs_no_download_and_then_the_newer_one_may_go(fleet, change_to):
    change_to(OLD, lmstudio_download_url=NOWHERE)
    assert versions(fleet) == [OLD, NEW, "selected.json"]
    change_to(OLD, again=True, lmstudio_download_url=NOWHERE, lmstudio_keep_versions=1).said(f"-{NEW}")
    assert versions(fleet) == [OLD, "selected.json"]
