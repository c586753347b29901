# SPDX-License-Identifier: GPL-3.0-or-later
"""LM Studio's programs are called for one home and no other, and found where bootstrap says."""

from __future__ import annotations

import json

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _lms


def test_a_call_has_its_home_and_the_place_of_its_daemon(tmp_path):
    script = 'echo "$HOME $LMS_API_SERVER_INFO_PATH $EXTRA"; pwd'
    result = _lms.call(["/bin/sh", "-c", script], str(tmp_path), 10, EXTRA="1")
    assert result.out == f"{tmp_path} {tmp_path}/.lmstudio/.internal/http-server.json 1\n{tmp_path}\n"


def test_an_install_is_found_only_when_both_programs_are_there(tmp_path):
    assert _lms.find_install(str(tmp_path)) is None
    llmster, lms = tmp_path / "llmster", tmp_path / ".lmstudio" / "bin" / "lms"
    location = tmp_path / ".lmstudio" / ".internal" / "llmster-install-location.json"
    for file in (llmster, lms, location):
        file.parent.mkdir(parents=True, exist_ok=True)
    location.write_text(json.dumps({"path": str(llmster), "argv": [], "cwd": ""}))
    llmster.touch(0o755)
    assert _lms.find_install(str(tmp_path)) is None
    lms.touch(0o755)
    assert _lms.find_install(str(tmp_path)) == (str(tmp_path), str(llmster), str(lms))
    location.write_text("{")
    assert _lms.find_install(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("text", "version", "same"),
    [
        ("0.0.25+1\n", "0.0.25-1", True),
        ("llmster 0.0.25+1 (abc)\n", "0.0.25-1", True),
        ("0.0.25+11\n", "0.0.25-1", False),
        ("10.0.25+1\n", "0.0.25-1", False),
        ("", "0.0.25-1", False),
    ],
)
def test_the_printed_version(text, version, same):
    assert _lms.prints_version(text, version) is same


def test_the_place_of_a_tuning_file():
    assert _lms.tuning_path("/h", "pub/name/f.gguf") == (
        "/h/.lmstudio/.internal/user-concrete-model-default-config/pub/name/f.gguf.json"
    )
