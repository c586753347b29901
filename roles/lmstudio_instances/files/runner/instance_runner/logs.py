# SPDX-License-Identifier: GPL-3.0-or-later
"""The log, and keeping it and LM Studio's own logs from growing for ever.

launchd holds runner.log open and appends, and so does llmster, which inherits it: a renamed file would go on growing.
So it is copied and then cut. A line written between the two is lost.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time

from .files import Places, remove


def log(text: str) -> None:
    """Write one line with a time stamp to stdout, which launchd appends to the log file."""
    print(time.strftime("%Y-%m-%dT%H:%M:%S%z"), text, flush=True)


def append_only(descriptor: int) -> None:
    """Make every write to an open file go to its end, wherever that is after it was cut."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_APPEND)


def keep_small(places: Places, max_bytes: int, keep: int) -> None:
    """Cut runner.log when it is longer than `max_bytes`, leaving `keep` older ones; the same for LM Studio's logs."""
    try:
        if rotate(places.log, max_bytes, keep):
            log(f"log rotated, {keep} older kept")
        prune(places.server_logs, max_bytes, keep)
    except OSError as error:  # not worth a model
        log(f"cannot rotate the logs: {error}")


def rotate(path: str, max_bytes: int, keep: int) -> bool:
    """Copy a log that is too long to `path`.1 (.1 becomes .2 and so on) and cut it; return whether it was cut."""
    if _size(path) <= max_bytes:
        return False
    for number in range(_most(path), 0, -1):
        if number >= keep:
            remove(f"{path}.{number}")
        elif os.path.exists(f"{path}.{number}"):
            os.replace(f"{path}.{number}", f"{path}.{number + 1}")
    try:
        if keep:
            shutil.copyfile(path, f"{path}.copy")
            os.replace(f"{path}.copy", f"{path}.1")
    except OSError:  # a full disk: then the log is what has to go
        remove(f"{path}.copy")
    os.truncate(path, 0)
    return True


def prune(folder: str, max_bytes: int, keep: int) -> None:
    """Keep the newest log below `folder` and `keep` older ones, and cut the newest when it is too long.

    LM Studio names them by day and number, and nothing tells that it ever removes one.
    """
    files = [os.path.join(parent, name) for parent, _folders, names in os.walk(folder) for name in names]
    files.sort(key=_age)
    for path in files[keep + 1 :]:
        remove(path)
        with contextlib.suppress(OSError):  # the folder of a month that has others left
            os.rmdir(os.path.dirname(path))
    if files and _size(files[0]) > max_bytes:
        os.truncate(files[0], 0)


def _most(path: str) -> int:
    """Return the highest number of the older logs of `path`."""
    start = os.path.basename(path) + "."
    numbers = [name[len(start) :] for name in os.listdir(os.path.dirname(path)) if name.startswith(start)]
    return max((int(number) for number in numbers if number.isdigit()), default=0)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _age(path: str) -> float:
    try:
        return -os.stat(path).st_mtime
    except OSError:
        return 0.0
