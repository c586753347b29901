# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""nginx with TLS in front of a gateway: its files, its job, and whether it serves what it was told."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import signal
import ssl
import time
from typing import NamedTuple

from ._addresses import from_here
from ._command import run
from ._files import atomic_write, exclusive, file_diff, make_directory, owner_for, read_bytes
from ._launchd import EX_CONFIG, Launchctl, Service, canonical, last_words, parse_plist, plan
from ._names import LOCK_NAME, TLS_LABEL

CONFIG = "nginx.conf"
#: Certificate and key in one file, so that nobody ever meets one of a pair.
PAIR = "server.pem"
#: The digest of the files that nginx was told last.
TOLD = "told"
#: Where a change is tried before it replaces what serves.
TRIAL = "trial"
HEALTH = "/health/liveliness"

_TEST_TIMEOUT = 30.0
_ASK_TIMEOUT = 5.0


class TlsError(Exception):
    """Files that nginx does not take, or an nginx that does not serve; the text says what to do."""


class Wanted(NamedTuple):
    """The server as declared: name to content of its files, its job, and the certificate that clients are to see."""

    files: dict[str, bytes]
    service: Service
    certificate: bytes
    address: str
    port: int
    nginx: str
    config_source: str

    def digest(self) -> bytes:
        whole = b"\0".join(self.files[name] for name in sorted(self.files))
        return hashlib.sha256(whole).hexdigest().encode("ascii")


class Plan(NamedTuple):
    """What there is to do, in this order, and a diff of each file."""

    actions: list[str]
    diff: list[dict]


def parse_wanted(params: dict) -> Wanted:
    """Return the Wanted of the options of the module. Raises TlsError, LaunchdError (for the property list)."""
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    text = params["certificate"]
    first = text[text.find(begin) : text.find(end) + len(end)] if begin in text and end in text else ""
    try:
        seen = ssl.PEM_cert_to_DER_cert(first)
    except ValueError:
        raise TlsError("certificate: there is none in it, as PEM text") from None
    plist = parse_plist(TLS_LABEL, params["plist"])
    service = Service(TLS_LABEL, "started", plist, (params["plist"].strip() + "\n").encode("utf-8"))
    pair = f"{text.strip()}\n{params['key'].strip()}\n"
    files = {CONFIG: params["config"].encode("utf-8"), PAIR: pair.encode("utf-8")}
    address = from_here(params["address"])
    return Wanted(files, service, seen, address, params["port"], params["nginx"], params["config_source"])


class Front:
    """Transport around the plan: `wanted` is None for a server that shall not be."""

    def __init__(self, folder: str, launchctl: Launchctl, wanted: Wanted | None) -> None:
        self.folder = os.path.abspath(folder)
        self.launchctl = launchctl
        self.wanted = wanted

    # Looking

    def plan(self) -> Plan:
        """Return what there is to do. Changes nothing."""
        return self._plan_absent() if self.wanted is None else self._plan_present(self.wanted)

    def _plan_absent(self) -> Plan:
        service = Service(TLS_LABEL, "absent", None)
        path = self.launchctl.domain.plist_path(TLS_LABEL)
        actual = self.launchctl.actual(service)
        actions = plan(service, path, actual)
        diff = [file_diff(path, actual.plist, None)] if actual.plist is not None else []
        if os.path.isfile(os.path.join(self.folder, LOCK_NAME)):
            actions.append("remove folder")
            diff.append(file_diff(self.folder, "the files of nginx\n", None))
        return Plan(actions, diff)

    def _plan_present(self, wanted: Wanted) -> Plan:
        path = self.launchctl.domain.plist_path(TLS_LABEL)
        disabled = TLS_LABEL in self.launchctl.disabled()
        actual = self.launchctl.actual(wanted.service)._replace(disabled=disabled)
        actions = plan(wanted.service, path, actual)
        found = {name: read_bytes(self._path(name)) for name in wanted.files}
        differing = [name for name in sorted(wanted.files) if found[name] != wanted.files[name]]
        starts = "bootstrap" in actions
        if not starts and (differing or read_bytes(self._path(TOLD)) != wanted.digest()):
            actions.append("reload")
        diff = []
        if actual.plist != canonical(wanted.service.plist):
            diff.append(file_diff(path, actual.plist, canonical(wanted.service.plist)))
        for name in differing:
            pair = (found[name], wanted.files[name])
            diff.append(file_diff(self._path(name), *(map(_version, pair) if name == PAIR else pair)))
        return Plan([*(f"write {name}" for name in differing), *actions], diff)

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def trouble(self) -> str:
        """Return "" when clients see the certificate and the gateway behind it, or what was seen instead."""
        wanted = self.wanted
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # it is compared with the one that was declared
        connection = http.client.HTTPSConnection(wanted.address, wanted.port, timeout=_ASK_TIMEOUT, context=context)
        try:
            connection.connect()
            if connection.sock.getpeercert(binary_form=True) != wanted.certificate:
                return "it shows another certificate"
            connection.request("GET", HEALTH)
            status = connection.getresponse().status
            return "" if status == 200 else f"{HEALTH} is answered with HTTP {status}"
        except (OSError, http.client.HTTPException) as error:
            return f"https://{wanted.address}:{wanted.port}{HEALTH}: {error}"
        finally:
            connection.close()

    # Changing

    def converge(self, timeout: float, lock_timeout: float) -> Plan:
        """Make it so, wait until it serves, and return what was done."""
        deadline = time.monotonic() + timeout
        if self.wanted is None:
            planned = self.plan()
            self._carry_out(planned, deadline)
            return planned
        make_directory(self.folder, 0o700)
        with exclusive(self.folder, "gateway_tls", lock_timeout):
            planned = self.plan()
            if planned.actions:
                self.launchctl.require_domain()
                self._try()
                self._carry_out(planned, deadline)
                self.launchctl.wait_running(self.wanted.service, deadline)
            trouble = self._wait(deadline)
            if trouble:
                raise TlsError(
                    f"waited {timeout:g} s for nginx to serve the gateway; {trouble}. "
                    + last_words(self.wanted.service.plist)
                )
            if planned.actions:
                atomic_write(self._path(TOLD), self.wanted.digest())
        return planned

    def _try(self) -> None:
        """Have nginx look at the files before they replace those that serve. Raises TlsError."""
        wanted, trial = self.wanted, self._path(TRIAL)
        if not os.access(wanted.nginx, os.X_OK):
            raise TlsError(
                f"{wanted.nginx}: there is no such program. Install nginx (with Homebrew: brew install nginx), or set "
                "gateway_tls_nginx to where it is. Nothing has been changed."
            )
        shutil.rmtree(trial, ignore_errors=True)
        try:
            for folder in (trial, os.path.join(trial, "temp")):
                make_directory(folder, 0o700)
            for name, content in wanted.files.items():
                atomic_write(os.path.join(trial, name), content, 0o600)
            owner = owner_for(os.path.join(trial, CONFIG))
            command = [wanted.nginx, "-t", "-q", "-p", trial + "/", "-c", CONFIG, "-e", "stderr"]
            tried = run(command, timeout=_TEST_TIMEOUT, owner=owner)
        finally:
            shutil.rmtree(trial, ignore_errors=True)
        if tried.rc != 0:
            said = tried.said().replace(trial + "/", "")
            raise TlsError(f"{wanted.config_source}: nginx does not take it. Nothing has been changed. It says: {said}")

    def _carry_out(self, planned: Plan, deadline: float) -> None:
        service = self.wanted.service if self.wanted else Service(TLS_LABEL, "absent", None)
        for action in planned.actions:
            verb, _space, what = action.partition(" ")
            if verb == "write" and what:
                make_directory(self._path("temp"), 0o700)
                atomic_write(self._path(what), self.wanted.files[what], 0o600)
            elif action == "remove folder":
                shutil.rmtree(self.folder)
            elif action == "reload":
                self._reload()
            else:
                self.launchctl.apply(service, [action], deadline)

    def _reload(self) -> None:
        """Have nginx take up its files. Those that it serves already are served to their end by what was."""
        job = self.launchctl.job(TLS_LABEL)
        # Without a process launchd is about to start one, which reads them anyway.
        if job is not None and job.pid is not None:
            os.kill(job.pid, signal.SIGHUP)

    def _wait(self, deadline: float) -> str:
        """Wait until it serves; return "" or, after `deadline`, what was seen last."""
        while True:
            trouble = self.trouble()
            if not trouble:
                return ""
            job = self.launchctl.job(TLS_LABEL)
            hopeless = job is not None and job.pid is None and job.last_exit == EX_CONFIG
            if hopeless or time.monotonic() >= deadline:
                return trouble
            time.sleep(0.3)


def _version(content: bytes | None) -> str | None:
    """Return what a diff may show of a file with a key in it."""
    return None if content is None else f"(hidden) version {hashlib.sha256(content).hexdigest()[:12]}\n"
