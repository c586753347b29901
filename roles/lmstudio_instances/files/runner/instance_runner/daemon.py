# SPDX-License-Identifier: GPL-3.0-or-later
"""llmster of this instance, as a child of the runner."""

from __future__ import annotations

import os
import subprocess
import time
from typing import Callable

from .errors import DaemonLostError
from .files import Places, read_object, remove, write_atomically
from .logs import log
from .processes import descends_from, process_row
from .server import no_control_port

END_TIMEOUT = 20.0  # seconds between SIGTERM and SIGKILL

#: What to do when LM Studio does not keep two instances apart.
SHARED = (
    "LM Studio does not run two daemons side by side here. Declare one instance on this Mac, with all its models and "
    "with copies of them, or end the other LM Studio."
)


class Daemon:
    """llmster; `pid` and `control_port` are what it has published of itself."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._child: subprocess.Popen[bytes] | None = None
        self.pid: int | None = None
        self.control_port: int | None = None

    def start(self, program: str, address: str, port: int) -> None:
        """Start llmster. Raises DaemonLostError."""
        remove(self._places.daemon_info)
        self._write_server_config(address, port)
        try:
            self._child = subprocess.Popen(
                [program],
                stdin=subprocess.DEVNULL,
                env=self._places.environment(),
                cwd=self._places.home,
            )
        except OSError as error:
            raise DaemonLostError(f"cannot run {program}: {error.strerror}") from None
        self.pid = self._child.pid
        log(f"llmster started as process {self.pid}")

    def _write_server_config(self, address: str, port: int) -> None:
        """Write what llmster reads when its server starts; other settings stay."""
        config = read_object(self._places.server_config)
        config.update(
            port=port,
            networkInterface=address,
            justInTimeModelLoading=False,  # a model that is not declared is not loaded by a request for it
        )
        os.makedirs(os.path.dirname(self._places.server_config), exist_ok=True)
        write_atomically(self._places.server_config, config)

    def published(self) -> bool:
        """Tell whether the daemon has said where it is. Raises DaemonLostError when that is not our child."""
        info = read_object(self._places.daemon_info)
        pid, port = info.get("pid"), info.get("port")
        if not isinstance(pid, int) or not isinstance(port, int):
            return False
        self.require_own(pid, f"llmster says that process {pid} at control port {port} is its daemon")
        self.pid, self.control_port = pid, port
        return True

    def require_own(self, pid: int, seen: str) -> None:
        """Raise DaemonLostError when a process is not our child or one that our child started."""
        child = self._child.pid if self._child else 0
        if not descends_from(pid, child):
            row = process_row(pid)
            what = f" ({row[1]})" if row else ""
            raise DaemonLostError(f"{seen}{what}; that is not process {child}, which was started here. {SHARED}")

    def lost(self) -> str:
        """Return why the daemon is gone, "" while it is there."""
        if self._child is None or self._child.poll() is None:
            return ""
        text = f"llmster ended by itself with exit code {self._child.returncode}"
        ports = no_control_port() if self.control_port is None else ""
        return f"{text}; {ports}" if ports else text

    def end(self, sleep: Callable[[float], None], meanwhile: Callable[[], None]) -> None:
        """End llmster, gently first."""
        child = self._child
        if child is not None:
            deadline = time.monotonic() + END_TIMEOUT
            if child.poll() is None:
                child.terminate()
            while child.poll() is None and time.monotonic() < deadline:
                sleep(min(1.0, deadline - time.monotonic()))
                meanwhile()
            if child.poll() is None:
                log(f"llmster did not stop within {END_TIMEOUT:g} s, killing it")
                child.kill()
                child.wait()
        self.pid = self.control_port = None
