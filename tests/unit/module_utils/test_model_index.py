# SPDX-License-Identifier: GPL-3.0-or-later
"""What the index of verified model files tells of a folder, and when that settles what is declared."""

from __future__ import annotations

import json
import os

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils._model_files import checked_models, settled
from ansible_collections.lmfleet.mac.plugins.module_utils._model_index import standing

MODEL = {"name": "m", "path": "p/m/m.gguf", "url": "http://files/m.gguf", "sha256": "A" * 64}


@pytest.fixture
def root(tmp_path):
    """A folder with one file that was fetched and verified."""
    file = tmp_path / "models" / "p" / "m" / "m.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    info = file.stat()
    entry = {"size": info.st_size, "mtime_ns": info.st_mtime_ns, "sha256": "a" * 64, "fetched": True}
    (tmp_path / "models.json").write_text(json.dumps({"p/m/m.gguf": entry, "p/m/gone.gguf": entry, "../x": entry}))
    return tmp_path


def told(root, *models):
    return settled(standing(str(root), "admin"), str(root / "models"), checked_models(list(models)))


def test_files_that_are_as_they_were_verified_settle_it(root):
    result = told(root, MODEL, {**MODEL, "name": "same"})
    assert not result["changed"] and result["undeclared"] == [] and result["server"] is None
    assert [(one["name"], one["state"], one["bytes"]) for one in result["models"]] == [
        ("m", "present", 7),
        ("same", "present", 7),
    ]
    assert (result["directory"], result["user"]) == (str(root / "models"), "admin")


def test_what_is_no_longer_declared_and_who_serves_it_is_told(root):
    (root / "model_server.py").write_text("")
    result = told(root)
    assert result["undeclared"] == ["p/m/m.gguf"] and result["server"] == str(root / "model_server.py")


@pytest.mark.parametrize("change", ["size", "time", "gone", "index", "broken", "another content", "another file"])
def test_anything_else_is_for_the_module(root, change):
    file, index = root / "models" / "p" / "m" / "m.gguf", root / "models.json"
    declared = dict(MODEL)
    if change == "size":
        stamp = file.stat().st_mtime_ns
        file.write_bytes(b"other weights")
        os.utime(file, ns=(stamp, stamp))
    elif change == "time":
        os.utime(file, ns=(1, 1))
    elif change == "gone":
        file.unlink()
    elif change == "index":
        index.unlink()
    elif change == "broken":
        index.write_text('["p/m/m.gguf"]')
    elif change == "another content":
        declared["sha256"] = "b" * 64
    else:
        declared["path"] = "p/m/n.gguf"
    assert told(root, declared) is None


def test_another_folder_is_not_settled_by_it(root):
    assert settled(standing(str(root), "admin"), "/elsewhere/models", checked_models([MODEL])) is None
    assert settled({}, str(root / "models"), []) is None
