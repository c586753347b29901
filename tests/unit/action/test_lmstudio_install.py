# SPDX-License-Identifier: GPL-3.0-or-later
"""The task lmstudio_install with what a host check has told: the Macs of these tests cannot be reached at all."""

from __future__ import annotations

import pytest

SELECTED = {"version": "0.0.25-1", "sha512": "a" * 128, "home": "/h", "llmster": "/h/llmster", "lms": "/h/lms"}
FOUND = {"versions": ["0.0.25-1", "0.0.24-1"], "leftovers": [], "selected": SELECTED}
TASK = {
    "version": "0.0.25-1",
    "url": "https://files/0.0.25-1.tar.gz",
    "checksum": "sha512:https://files/0.0.25-1.tar.gz.sha512",
    "directory": "/d",
}


@pytest.fixture
def play(controller, inventory):
    def play(**changes):
        inventory["all"]["vars"].update(ansible_connection="local", ansible_python_interpreter="/nowhere/python")
        install = {"lmfleet.mac.lmstudio_install": {**TASK, **changes}, "register": "one"}
        show = {"ansible.builtin.debug": {"msg": "{{ one.llmster }} {{ one.versions | join(',') }} {{ one.changed }}"}}
        run = controller(inventory, [install, show])
        return run.communicate(timeout=60)[0]

    return play


@pytest.mark.parametrize("changes", [{}, {"checksum": "sha512:" + "A" * 128}, {"keep_versions": 5}])
def test_where_nothing_is_to_be_done_the_mac_is_not_asked(play, changes):
    output = play(found=FOUND, **changes)
    assert "/h/llmster 0.0.25-1,0.0.24-1 False" in output and "failed=0" in output


@pytest.mark.parametrize(
    ("found", "changes"),
    [
        ({}, {}),
        ({**FOUND, "leftovers": [".0.0.26-1.part"]}, {}),
        ({**FOUND, "selected": {**SELECTED, "version": "0.0.24-1"}}, {}),
        (FOUND, {"checksum": "sha512:" + "b" * 128}),
        (FOUND, {"keep_versions": 1}),
        (FOUND, {"version": "0.0.26-1"}),
    ],
)
def test_everything_else_is_left_to_the_mac(play, found, changes):
    output = play(found=found, **changes)
    assert "/nowhere/python" in output and "failed=1" in output


def test_an_archive_of_the_controller_has_its_checksum_beside_it(play, tmp_path):
    archive = tmp_path / "0.0.25-1-darwin-arm64.full.tar.gz"
    archive.write_text("x")
    sent = {"found": FOUND, "url": None, "src": str(archive), "checksum": None}
    assert f"{archive}.sha512: No such file" in play(**sent)
    (tmp_path / f"{archive.name}.sha512").write_text(f"{'a' * 128}  {archive.name}\n")
    assert "/h/llmster" in play(**sent)
    (tmp_path / f"{archive.name}.sha512").write_text(f"{'b' * 128}  {archive.name}\n")
    assert "/nowhere/python" in play(**sent)
