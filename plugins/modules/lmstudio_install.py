#!/usr/bin/python
# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module lmstudio_install."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lmstudio_install
short_description: Install one pinned version of llmster and lms
version_added: "0.1.0"
author: ["The lmfleet contributors (@lmfleet)"]
description:
  - Installs LM Studio's headless daemon C(llmster) and its CLI C(lms) from the vendor's archive into a folder of their
    own, one folder per version. A desktop LM Studio on the same Mac is not touched.
  - The versions selected last are kept, so that going back to one of them needs no download. Older ones are removed,
    unless something still runs from them.
  - The archive is verified before it is unpacked. Nothing is taken from the vendor's install script, and nothing is
    updated by itself.
  - An install that was cut off is removed and done again. An install that is complete costs no process and no network.
  - Run it as the login user that shall own the install.
attributes:
  check_mode:
    description: Tells whether an install would happen, without downloading anything.
    support: full
  diff_mode:
    description: Shows the version and checksum before and after.
    support: full
options:
  version:
    description: Version as in the name of the archive, for example V(0.0.25-1).
    type: str
    required: true
  url:
    description: The archive as an http, https or file URL, or as an absolute path on the Mac.
    type: str
  src:
    description:
      - The archive as a file on the controller, for Macs without a way to the internet. It is sent only to a Mac that
        has to install it. Exactly one of O(src) and O(url) is needed.
    type: path
  checksum:
    description:
      - V(sha512:) and either the 128 hex digits or the place of a checksum file, as a URL or an absolute path.
      - With O(src) the checksum file is on the controller; without O(checksum) it is O(src) with C(.sha512) appended.
    type: str
  directory:
    description: Folder that holds one folder per version. The version's folder is the HOME of that install.
    type: path
    required: true
  keep_versions:
    description: How many versions stay installed, the selected one included.
    type: int
    default: 2
  instances_directory:
    description: Folder with the homes of the instances, to see which versions they run from.
    type: path
  found:
    description:
      - What M(lmfleet.mac.mac_host_check) has just told in C(facts.lmstudio). Where it shows that there is nothing to
        do, the Mac is not asked again.
    type: dict
  timeout:
    description: Seconds the download may take, and again the bootstrap.
    type: int
    default: 3600
  lock_timeout:
    description: Seconds to wait for another run on the same Mac that is installing.
    type: int
    default: 120
"""

EXAMPLES = r"""
- name: Install LM Studio from the vendor
  lmfleet.mac.lmstudio_install:
    version: 0.0.25-1
    url: https://llmster.lmstudio.ai/download/0.0.25-1-darwin-arm64.full.tar.gz
    checksum: sha512:https://llmster.lmstudio.ai/download/0.0.25-1-darwin-arm64.full.tar.gz.sha512
    directory: /Users/admin/.lmfleet/llmster
  register: lmstudio

- name: Install LM Studio from a file on the controller
  lmfleet.mac.lmstudio_install:
    version: 0.0.25-1
    src: /srv/lmstudio/0.0.25-1-darwin-arm64.full.tar.gz
    directory: /Users/admin/.lmfleet/llmster
"""

RETURN = r"""
version:
  description: The version asked for.
  returned: success
  type: str
  sample: 0.0.25-1
llmster:
  description: Absolute path of the daemon. In check mode before the install, where it is expected to be.
  returned: success
  type: str
  sample: /Users/admin/.lmfleet/llmster/0.0.25-1/.lmstudio/llmster/0.0.25-1/llmster
lms:
  description: Absolute path of the CLI.
  returned: success
  type: str
  sample: /Users/admin/.lmfleet/llmster/0.0.25-1/.lmstudio/bin/lms
home:
  description: HOME of this install.
  returned: success
  type: str
  sample: /Users/admin/.lmfleet/llmster/0.0.25-1
installed:
  description: Whether the version had to be installed. When only another version was selected it had not.
  returned: success
  type: bool
  sample: false
versions:
  description: The versions that are on the Mac afterwards, the latest selected first.
  returned: success
  type: list
  elements: str
  sample: [0.0.25-1, 0.0.24-2]
removed:
  description: Versions, and leftovers of installs that were cut off, that were removed.
  returned: success
  type: list
  elements: str
  sample: [0.0.23-1]
"""

import os
import shutil

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._archive import ArchiveError, unpack
from ..module_utils._download import (
    ChecksumError,
    DownloadError,
    fetch,
    free_bytes,
    is_digest,
    local_path,
    parse_checksum,
    size_of,
    text_of,
)
from ..module_utils._files import (
    LockTimeoutError,
    atomic_write,
    canonical_json,
    exclusive,
    file_diff,
    hash_file,
    make_directory,
    read_json,
    remove_file,
)
from ..module_utils._lms import Install, call, find_install, printed_version, prints_version
from ..module_utils._versions import (
    HISTORY,
    MARKER,
    PART,
    VERSION,
    Removal,
    history_after,
    installed,
    look,
    selected_before,
    too_many,
    used_homes,
)

_DIGITS = 128
_VERSION_TIMEOUT = 60.0
#: Free space an install needs for each byte of its archive: the archive, what is in it, and bootstrap's copy of that.
_SPACE_FACTOR = 4


class InstallError(Exception):
    """An install that cannot be done; the text names version, source and next step."""


def expected_digest(checksum: str, archive: str) -> str | None:
    """Return the digest given by the option, None when it names a checksum file. Raises InstallError."""
    algorithm, _colon, rest = checksum.partition(":")
    if algorithm != "sha512" or not rest:
        raise InstallError(f"checksum of {archive} must be sha512:<{_DIGITS} hex digits> or sha512:<URL of a file>")
    if is_digest(rest, _DIGITS):
        return rest.lower()
    if "/" not in rest:
        raise InstallError(f"checksum of {archive}: {rest!r} is neither {_DIGITS} hex digits nor the place of a file")
    return None


def require_space(url: str, directory: str, part: str) -> None:
    """Raise InstallError when the disk has no room for the install; an archive of unknown size passes."""
    size = size_of(url)
    if size is None:
        return
    have = os.path.getsize(part) if os.path.exists(part) else 0
    wanted, free = _SPACE_FACTOR * size - have, free_bytes(directory)
    if free < wanted:
        raise InstallError(
            f"{directory}: {_mb(free)} MB are free, and to install from an archive of {_mb(size)} MB takes about "
            f"{_mb(wanted)} MB. Free some space and run again; nothing has been changed."
        )


def _mb(size: int) -> int:
    return -(-size // 1_000_000)


def obtain(url: str, digest: str, part: str, timeout: float) -> str:
    """Return the path of the verified archive: the local file itself, or `part` filled by a download."""
    path = local_path(url)
    if path is None:
        fetch(url, part, "sha512", digest, timeout)
        return part
    if not os.path.isfile(path):
        raise DownloadError(f"{path}: no such file on this Mac")
    got = hash_file(path, "sha512")
    if got != digest:
        raise ChecksumError(f"{url}: wrong sha512: expected {digest}, got {got}. Nothing was kept.")
    return path


def bootstrap(archive: str, home: str, version: str, timeout: float) -> Install:
    """Unpack the archive into `home`, let it install itself there, and return what it installed."""
    unpacked = os.path.join(home, "archive")
    os.makedirs(unpacked)
    unpack(archive, unpacked)
    program = os.path.join(unpacked, "llmster")
    if not os.path.isfile(program):
        raise InstallError(f"{archive}: there is no llmster in the archive of version {version}")
    os.chmod(program, 0o755)
    quiet = {"LMS_BOOTSTRAP_INSTALL_SH": "1", "LMS_NO_MODIFY_PATH": "1"}
    result = call([program, "bootstrap"], home, timeout, **quiet)
    install = find_install(home)
    if install is None:
        raise InstallError(f"llmster {version}: bootstrap did not install it; it said: {result.said()}")
    if not install.llmster.startswith(unpacked + os.sep):
        shutil.rmtree(unpacked)
    answer = call([install.llmster, "--version"], home, _VERSION_TIMEOUT)
    if not prints_version(answer.out, version):
        said = answer.out.strip() or answer.said()
        raise InstallError(f"llmster {version}: --version must print {printed_version(version)}, it printed {said!r}")
    return install


def do_install(params: dict, home: str, digest: str | None) -> tuple[Install, str]:
    """Install into `home`, of which nothing is left when that fails; return the install and the archive's digest."""
    version, url = params["version"], params["url"]
    part = os.path.join(params["directory"], f".{version}{PART}")
    require_space(url, params["directory"], part)
    if digest is None:
        source = params["checksum"].partition(":")[2]
        digest = parse_checksum(text_of(source), os.path.basename(url), "sha512")
    archive = obtain(url, digest, part, params["timeout"])
    if os.path.isdir(home):
        shutil.rmtree(home)
    make_directory(home)
    try:
        install = bootstrap(archive, home, version, params["timeout"])
        marker = {"version": version, "sha512": digest, "llmster": install.llmster, "lms": install.lms}
        atomic_write(os.path.join(home, MARKER), canonical_json(marker))
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise
    remove_file(part)
    return install, digest


def plan_removal(params: dict, on_disk: dict[str, float], rubbish: list[str], history: list[str]) -> Removal:
    """Return what is to be removed once the version is there; asks what runs only when there is something."""
    directory, version = params["directory"], params["version"]
    # A download of the version itself goes on where it was cut off, and is gone when the install is complete.
    leftovers = [name for name in rubbish if name not in (version, f".{version}{PART}")]
    versions = too_many({**on_disk, version: on_disk.get(version, 0.0)}, history, params["keep_versions"])
    candidates = [os.path.join(directory, name) for name in [*versions, *leftovers]]
    if candidates:
        instances = params["instances_directory"] or os.path.join(os.path.dirname(directory), "instances")
        used = {os.path.basename(home) for home in used_homes(candidates, instances)}
        versions = [name for name in versions if name not in used]
        leftovers = [name for name in leftovers if name not in used]
    return Removal(versions, leftovers)


def remove(directory: str, removal: Removal) -> None:
    for name in [*removal.versions, *removal.rubbish]:
        path = os.path.join(directory, name)
        if os.path.isdir(path):
            # First what makes it an install: one that was half removed must never count as complete.
            remove_file(os.path.join(path, MARKER))
            shutil.rmtree(path)
        else:
            remove_file(path)


def ensure(module: AnsibleModule) -> dict:
    """Return the results of the module; installs, selects and removes when that is needed."""
    params = module.params
    version, directory = params["version"], params["directory"]
    if not VERSION.fullmatch(version):
        raise InstallError(f"{version!r} is not a version of llmster, such as 0.0.25-1")
    if params["src"]:
        raise InstallError("src is a file on the controller: it works only in a task, through the action plugin")
    if params["keep_versions"] < 1:
        raise InstallError(f"keep_versions must be at least 1, not {params['keep_versions']}")
    home = os.path.join(directory, version)
    digest = expected_digest(params["checksum"], params["url"])
    on_disk, rubbish = look(directory)
    history = selected_before(directory, on_disk)
    install = installed(home, version, digest)
    missing = install is None
    marker = read_json(os.path.join(home, MARKER)) if missing else None
    after = {"version": version, "sha512": digest or "as in the checksum file"}
    selected = history_after(history, version)
    removal = plan_removal(params, on_disk, rubbish, selected)
    changed = missing or selected[:1] != history[:1] or bool(removal.versions or removal.rubbish)
    if changed and not module.check_mode:
        make_directory(directory)
        with exclusive(directory, "lmstudio_install", params["lock_timeout"]):
            install = installed(home, version, digest)  # another run may have done it meanwhile
            if install is None:
                install, after["sha512"] = do_install(params, home, digest)
            if selected != history:
                atomic_write(os.path.join(directory, HISTORY), canonical_json({"versions": selected}))
            remove(directory, removal)
    if install is None:
        lmstudio = os.path.join(home, ".lmstudio")
        llmster = os.path.join(lmstudio, "llmster", version, "llmster")
        install = Install(home, llmster, os.path.join(lmstudio, "bin", "lms"))
    diff = []
    if missing:
        shown = {key: marker.get(key) for key in after} if isinstance(marker, dict) else None
        diff = [file_diff(home, canonical_json(shown) if shown else None, canonical_json(after))]
    kept = [name for name in selected if name not in removal.versions]
    if kept != history:
        lines = ["".join(f"{name}\n" for name in names) for names in (history, kept)]
        diff.append(file_diff(f"{directory} (versions, the selected one first)", *lines))
    return {
        "changed": changed,
        "installed": missing,
        "version": version,
        "versions": kept,
        "removed": [*removal.versions, *removal.rubbish],
        "home": home,
        "llmster": install.llmster,
        "lms": install.lms,
        "diff": diff,
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str", "required": True},
            "url": {"type": "str"},
            "src": {"type": "path"},
            "checksum": {"type": "str"},
            "directory": {"type": "path", "required": True},
            "keep_versions": {"type": "int", "default": 2},
            "instances_directory": {"type": "path"},
            "found": {"type": "dict"},
            "timeout": {"type": "int", "default": 3600},
            "lock_timeout": {"type": "int", "default": 120},
        },
        required_one_of=[("url", "src")],
        mutually_exclusive=[("url", "src")],
        required_by={"url": "checksum"},
        supports_check_mode=True,
    )
    try:
        result = ensure(module)
    except (InstallError, DownloadError, ArchiveError, LockTimeoutError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
