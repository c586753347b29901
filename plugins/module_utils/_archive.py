# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Unpacks a tar archive without letting it write anywhere else."""

from __future__ import annotations

import os
import tarfile


class ArchiveError(Exception):
    """An archive that cannot be unpacked, or must not be."""


def unpack(archive: str, folder: str) -> None:
    """Unpack the tar file `archive`, compressed or not, below the existing `folder`.

    Raises ArchiveError before anything is written when a member would land outside, or is a device; owners and
    set-user-id bits of the archive are not taken over.
    """
    try:
        with tarfile.open(archive) as tar:
            links = {os.path.normpath(member.name) for member in tar.getmembers() if member.issym()}
            members = [_checked(member, archive, links) for member in tar.getmembers()]
            # Python 3.9 of the Command Line Tools has no filters; newer ones ask for one, and all is checked already.
            extra = {"filter": "fully_trusted"} if hasattr(tarfile, "fully_trusted_filter") else {}
            tar.extractall(folder, members=members, **extra)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ArchiveError(f"{archive}: cannot be unpacked: {error}") from None


def _checked(member: tarfile.TarInfo, archive: str, links: set[str]) -> tarfile.TarInfo:
    if not (member.isfile() or member.isdir() or member.issym() or member.islnk()):
        raise ArchiveError(f"{archive}: member {member.name} is neither file, folder nor link")
    outside = ArchiveError(f"{archive}: member {member.name} points outside of the archive")
    places = [member.name] + ([member.linkname] if member.islnk() else [])
    for place in places:
        parts = place.split("/")
        # Below a link, the path as text says nothing about where it leads.
        above = {os.path.normpath("/".join(parts[:end])) for end in range(1, len(parts))}
        if os.path.isabs(place) or ".." in parts or above & links:
            raise outside
    if member.islnk() and os.path.normpath(member.linkname) in links:
        raise outside
    if member.issym():
        target = os.path.normpath(os.path.join(os.path.dirname(member.name), member.linkname))
        upwards = os.path.normpath(member.linkname).split("/").count("..")
        climbs_later = ".." in member.linkname.split("/")[upwards:]
        if os.path.isabs(member.linkname) or target.split("/")[0] == ".." or climbs_later:
            raise outside
    member.mode &= 0o777
    member.uid, member.gid = os.geteuid(), os.getegid()
    member.uname = member.gname = ""
    return member
