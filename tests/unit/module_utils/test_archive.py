# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives cannot write outside of the folder they are unpacked to."""

from __future__ import annotations

import io
import os
import tarfile

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils._archive import ArchiveError, unpack


def archive(tmp_path, *members):
    """Write a tar of (name, kind, target or content) and return its path."""
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.uid = kind, 0o4755, 1234
            if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                info.linkname = content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return str(path)


def test_files_and_links_inside(tmp_path):
    source = archive(
        tmp_path,
        ("dir/file", tarfile.REGTYPE, b"x"),
        ("dir/link", tarfile.SYMTYPE, "file"),
        ("up", tarfile.SYMTYPE, "./dir/file"),
        ("dir/hard", tarfile.LNKTYPE, "dir/file"),
        ("dir/back", tarfile.SYMTYPE, "../up"),
    )
    target = tmp_path / "out"
    target.mkdir()
    unpack(source, str(target))
    for name in ("dir/file", "dir/link", "up", "dir/hard", "dir/back"):
        assert (target / name).read_bytes() == b"x"
    info = (target / "dir/file").stat()
    assert info.st_mode & 0o7777 == 0o755 and info.st_uid == os.geteuid()


@pytest.mark.parametrize(
    "members",
    [
        [("/etc/x", tarfile.REGTYPE, b"x")],
        [("../x", tarfile.REGTYPE, b"x")],
        [("a/../../x", tarfile.REGTYPE, b"x")],
        [("l", tarfile.SYMTYPE, "/etc/passwd")],
        [("l", tarfile.SYMTYPE, "../x")],
        [("d/l", tarfile.SYMTYPE, "../../x")],
        [("d/l", tarfile.SYMTYPE, "a/../x")],
        [("h", tarfile.LNKTYPE, "../x")],
        [("h", tarfile.LNKTYPE, "/etc/passwd")],
        [("p/s", tarfile.SYMTYPE, ".."), ("p/s/x", tarfile.REGTYPE, b"x")],
        [("s", tarfile.SYMTYPE, "."), ("s/l", tarfile.SYMTYPE, "../x")],
        [("s", tarfile.SYMTYPE, "a"), ("h", tarfile.LNKTYPE, "s")],
        [("fifo", tarfile.FIFOTYPE, b"")],
    ],
)
def test_everything_else_is_refused_before_anything_is_written(tmp_path, members):
    source = archive(tmp_path, ("first", tarfile.REGTYPE, b"x"), *members)
    target = tmp_path / "out"
    target.mkdir()
    with pytest.raises(ArchiveError, match=members[-1][0] if len(members) == 1 else "outside"):
        unpack(source, str(target))
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x1f\x8b\x08 cut off"])
def test_what_is_no_archive(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ArchiveError, match="cannot be unpacked"):
        unpack(str(tmp_path / "a"), str(tmp_path))
