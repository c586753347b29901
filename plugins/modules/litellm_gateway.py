#!/usr/bin/python
# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module litellm_gateway."""

from __future__ import annotations

DOCUMENTATION = r"""
module: litellm_gateway
short_description: Install and configure a LiteLLM proxy of its own
version_added: "0.1.0"
author:
  - The lmfleet contributors (@lmfleet)
description:
  - Brings the folder of a gateway into its state with one call. It holds virtual environments that are locked by
    hashes, and releases. A release is a folder with all that a start of LiteLLM reads, such as its configuration,
    the plugin that follows the registry, and a file with the environment and the master key that only its user can
    read. The link C(current) names the one in use.
  - Whatever is to be changed becomes a new release. Its configuration is checked by the LiteLLM it is for. Where a
    gateway runs, the release is then tried beside it, on a port of its own. After that the runner starts it on the
    port of the gateway, and ends the former one once all workers of the new one serve. No request fails, also when
    LiteLLM is another version.
  - A release that does not come up is removed again. The former one serves all the time, and the module fails and says
    why.
  - A master key that was changed is accepted at once, and the former one for O(master_key_grace) seconds.
  - Does not start the job of the gateway. Put RV(fingerprint) into the launchd job, so that the job changes when the
    runner itself is another one. That is the only change that restarts the gateway, and the module warns of it.
  - A run that was killed at any point is repaired by the next one. Where nothing is to be changed, no process is
    started.
attributes:
  check_mode:
    description: Whether the task can run in check mode. The configuration is then not checked by LiteLLM.
    support: full
  diff_mode:
    description: Whether the task returns a diff. Secrets are left out of it.
    support: full
options:
  root:
    description:
      - Folder of the gateway. C(~) is the home of the user that Ansible logs in as.
    type: path
    required: true
  user:
    description:
      - User that the gateway belongs to. It must be the one that Ansible logs in as, and is that one when it is not
        set.
    type: str
  version:
    description:
      - Version of LiteLLM. Releases that were tampered with, or that have known holes, are refused.
    type: str
    required: true
  requirements:
    description:
      - Text of the lock, a requirements file for this platform with exact versions and hashes.
    type: str
    required: true
  uv_requirements:
    description:
      - Text of the lock of C(uv), the installer.
    type: str
    required: true
  python:
    description:
      - Interpreter for the gateway, Python 3.11 to 3.14. When it is not set, C(uv) installs O(python_version) below
        O(root).
    type: path
  python_version:
    description:
      - Exact version of CPython that C(uv) installs. C(uv) knows its checksum.
    type: str
    default: 3.12.16
  environment:
    description:
      - Environment variables for the installation and for the gateway, such as those for a proxy or a mirror, as JSON
        text of a mapping. As text it can be kept out of all logs without hiding every C(1) and C(True) in the result.
    type: json
  service_environment:
    description:
      - Environment variables for the gateway only, as JSON text as well. O(environment) comes before it.
    type: json
  database_url:
    description:
      - Address of a Postgres database, with user and password, as V(postgresql://user:password@host:5432/litellm).
        Where it is set, O(database_requirements) must pin C(prisma), which LiteLLM reaches its database with.
      - LiteLLM gets it as C(DATABASE_URL), in the file that only its user can read.
      - What LiteLLM encrypts in the database, such as the settings of deployments, it reads with the same key only. So
        the first master key is kept for that in C(salt_key), which only its user can read, and O(master_key) may
        change. LiteLLM gets it as C(LITELLM_SALT_KEY), unless O(environment) has one.
    type: str
  database_requirements:
    description:
      - Text of the lock of what LiteLLM needs for a database beyond O(requirements).
    type: str
    default: ""
  service:
    description:
      - How the gateway listens, starts and ends.
    type: dict
    default: {}
    suboptions:
      address:
        description: IP address to listen on.
        type: str
        default: 127.0.0.1
      port:
        description: Port to listen on, 1 to 65535.
        type: int
        default: 4000
      workers:
        description: Number of worker processes. V(0) is half of the performance cores of this Mac, from 1 to 8.
        type: int
        default: 1
      start_timeout:
        description: Seconds until all workers of a new release must serve.
        type: int
        default: 120
      drain_timeout:
        description: Seconds that requests which run when the release is changed get to end.
        type: int
        default: 600
      log_size_mb:
        description: Size of one log file.
        type: int
        default: 10
      log_files:
        description: Number of log files that are kept. With V(1), the only one begins anew when it is full.
        type: int
        default: 5
  config:
    description:
      - Text of C(config.yaml), as a JSON string, which is kept out of all logs. Its diff is shown without secrets.
    type: json
    required: true
  config_source:
    description:
      - Name of the template that O(config) comes from, for messages.
    type: str
    default: config
  plugin:
    description:
      - Text of C(lmfleet_registry.py), the plugin.
    type: str
    required: true
  launcher:
    description:
      - Text of C(run-gateway), the program that starts a release.
    type: str
    required: true
  server:
    description:
      - Text of C(gateway_server.py), which the launcher runs.
    type: str
    required: true
  runner:
    description:
      - Text of C(gateway_runner.py), the program that the launchd job runs.
    type: str
    required: true
  master_key:
    description:
      - The master key, which clients send. When it is empty, one is made once and kept.
    type: str
    default: ""
  master_key_grace:
    description:
      - Seconds for which the former master key is accepted after it was changed. V(0) ends it at once.
    type: int
    default: 300
  redis_url:
    description:
      - Address of a Redis, with its password. The gateway finds it in the environment variable C(LMFLEET_REDIS_URL),
        which only its user can read.
    type: str
    default: ""
  timeout:
    description:
      - Seconds that each step of the installation may take.
    type: int
    default: 1200
"""

EXAMPLES = r"""
- name: Install and configure the gateway
  lmfleet.mac.litellm_gateway:
    root: ~/.lmfleet/gateway
    version: 1.106.2
    requirements: "{{ lookup('ansible.builtin.file', 'requirements-macos-arm64.txt') }}"
    uv_requirements: "{{ lookup('ansible.builtin.file', 'requirements-uv.txt') }}"
    config: "{{ lookup('ansible.builtin.template', 'config.yaml.j2') | to_json }}"
    environment: "{{ {'HTTPS_PROXY': proxy_with_password} | to_json }}"
    plugin: "{{ lookup('ansible.builtin.file', 'lmfleet_registry.py') }}"
    launcher: "{{ lookup('ansible.builtin.template', 'run-gateway.j2') }}"
    server: "{{ lookup('ansible.builtin.file', 'gateway_server.py') }}"
    runner: "{{ lookup('ansible.builtin.file', 'gateway_runner.py') }}"
    service:
      workers: 4
  register: gateway
"""

RETURN = r"""
root:
  description: Absolute path of the folder.
  returned: success
  type: str
user:
  description: User that the gateway belongs to.
  returned: success
  type: str
home:
  description: Home of that user.
  returned: success
  type: str
venv:
  description: Absolute path of the virtual environment in use.
  returned: success
  type: str
registry:
  description: Absolute path of the registry's folder.
  returned: success
  type: str
master_key_file:
  description: Absolute path of the file with the master key, which only the user can read.
  returned: success
  type: str
release:
  description: Name of the release in use. In check mode the one before.
  returned: success
  type: str
unconfirmed:
  description:
    - Whether no runner says that it serves RV(release), because none runs. C(status.json) in the folder tells what
      becomes of it once the job is started. In check mode V(false).
  returned: success
  type: bool
fingerprint:
  description: A hash that is another one whenever the launchd job must be restarted.
  returned: success
  type: str
actions:
  description:
    - What was done, out of C(tools), C(venv), C(database), C(switch), C(remove) and the names of files. C(switch) means
      another release. C(remove), of what is not used any more, is by itself no change.
  returned: success
  type: list
  elements: str
  sample: [config.yaml]
"""

import glob
import ipaddress
import json
import os
import pwd
import re
import secrets
import shutil
import stat
import sys
import time

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _gateway_release, _litellm
from ..module_utils._command import run
from ..module_utils._files import (
    LockTimeoutError,
    atomic_write,
    canonical_json,
    exclusive,
    file_diff,
    make_directory,
    read_bytes,
    read_json,
)
from ..module_utils._gateway_trial import TrialError, end_leftovers, trial

#: Name of each file of a release to the mode it has.
RELEASE = {
    "config.yaml": 0o600,
    "lmfleet_registry.py": 0o644,
    "gateway_server.py": 0o644,
    "run-gateway": 0o755,
    "release.json": 0o644,
    "gateway.env": 0o600,
}
#: The same for the files beside the releases.
LASTING = {
    "gateway_runner.py": 0o644,
    "client_keys.json": 0o600,
    "salt_key": 0o600,
    "master_key": 0o600,
}
#: Of which nothing is shown.
SECRET = ("client_keys.json", "salt_key", "master_key")
MODES = {**RELEASE, **LASTING}
#: Seconds beyond its own timeout in which the runner tells what became of a release.
RUNNER_GRACE = 30
POLL = 0.2
CHECK_TIMEOUT = 180
#: Another run may be installing.
LOCK_TIMEOUT = 900

CHECK_YAML = """
import sys, yaml
try:
    with open(sys.argv[1], encoding="utf-8") as stream:
        config = yaml.safe_load(stream)
except yaml.YAMLError as error:
    mark = getattr(error, "problem_mark", None)
    raise SystemExit("line %s: %s" % (mark.line + 1 if mark else "?", getattr(error, "problem", error)))
if not isinstance(config, dict):
    raise SystemExit("line 1: it is not a mapping")
"""
#: Prints the line of the entry without which LiteLLM would read the configuration.
FIND_ENTRY = """
import asyncio, sys, tempfile, yaml
from litellm.proxy.proxy_server import ProxyConfig

with open(sys.argv[1], encoding="utf-8") as stream:
    root = yaml.compose(stream)

def accepted():
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", dir=".", encoding="utf-8") as stream:
        yaml.serialize(root, stream)
        stream.flush()
        try:
            asyncio.run(ProxyConfig().load_config(router=None, config_file_path=stream.name))
        except Exception:
            return False
    return True

def find(node, line):
    whole = node.value
    for number, child in enumerate(whole if isinstance(node, yaml.CollectionNode) else ()):
        node.value = whole[:number] + whole[number + 1:]
        good = accepted()
        node.value = whole
        if good:
            first, last = child if isinstance(child, tuple) else (child, child)
            return find(last, first.start_mark.line + 1)
    return line

print("found in line", find(root, 0))
"""


class GatewayError(Exception):
    """What stops the module, with the next step in its text."""


class Gateway:
    """The folder of a gateway: what is in it, and how to change it."""

    def __init__(self, params: dict) -> None:
        environments = {name: _mapping(params, name) for name in ("environment", "service_environment")}
        self.params = {**params, **environments, "config": _text(params, "config")}
        self.root = params["root"]
        self.account = pwd.getpwuid(os.geteuid())
        python = params["python"] or "cpython-" + params["python_version"]
        self.tools = _litellm.folder_name("tools", params["uv_requirements"])
        self.venv = _litellm.folder_name("venv", params["requirements"], python)
        #: What LiteLLM needs for a database, or "" where it has none.
        self.database = ""
        if params["database_url"]:
            self.database = _litellm.folder_name("database", params["database_requirements"], self.venv)

    def path(self, *parts: str) -> str:
        """Return a path below the folder."""
        return os.path.join(self.root, *parts)

    def refuse_what_cannot_be(self) -> None:
        """Raise GatewayError for parameters that can never work."""
        problem = _litellm.version_problem(self.params["version"], self.params["requirements"])
        if not problem and self.params["database_url"]:
            given = (self.params["environment"], self.params["service_environment"])
            problem = _litellm.database_problem(
                self.params["database_url"], self.params["database_requirements"], *given
            )
        if problem:
            raise GatewayError(problem)
        address = self.params["service"]["address"]
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise GatewayError(
                f"{address!r} is no address to listen on. Set litellm_address to an IP address "
                "of this Mac, to 127.0.0.1 for clients on it only, or to 0.0.0.0 for all of its addresses."
            ) from None
        port = self.params["service"]["port"]
        if not 1 <= port <= 65535:
            raise GatewayError(f"{port} is no port to listen on. Set litellm_port to a number from 1 to 65535.")
        user = self.params["user"]
        if user and user != self.account.pw_name:
            raise GatewayError(
                f"the gateway shall belong to {user}, but Ansible is logged in as {self.account.pw_name}. "
                f"Log in as {user} (ansible_user)."
            )
        if _litellm.MASTER_KEY_VARIABLE in self.params["environment"]:
            raise GatewayError(f"{_litellm.MASTER_KEY_VARIABLE} is in the environment; give the key as master_key.")
        problem = _litellm.redis_problem(self.params["redis_url"])
        if problem:
            raise GatewayError(f"litellm_redis_url {problem}")

    def place(self, name: str) -> str:
        """Return the path of a file: in the release in use, or beside the releases."""
        return self.path("current", name) if name in RELEASE else self.path(name)

    def content(self, name: str) -> str | None:
        """Return the text of a file, or None when it is absent."""
        content = read_bytes(self.place(name))
        return None if content is None else content.decode("utf-8", "replace")

    def text(self, name: str) -> str | None:
        """Return the text of a file as it must be: None also when it has another mode, so that it is written anew."""
        content = self.content(name)
        if content is None or stat.S_IMODE(os.stat(self.place(name)).st_mode) != MODES[name]:
            return None
        return content

    def wanted(self) -> dict:
        """Return name to text of all files."""
        key = self.params["master_key"] or (self.content("master_key") or "").strip() or "sk-" + secrets.token_hex(24)
        database_key = self.database_key(key)
        variables = self.variables(key, database_key)
        salt = _litellm.salt_of(self.content("gateway.env")) or secrets.token_hex(16)
        try:
            environment = _litellm.Environment(variables, salt).render()
        except ValueError as error:
            raise GatewayError(f"{error}. Correct litellm_environment.") from None
        service = dict(self.params["service"])
        service["workers"] = service["workers"] or min(max(performance_cores() // 2, 1), 8)
        service["log_bytes"] = service.pop("log_size_mb") << 20
        return {
            "config.yaml": _ended(self.params["config"]),
            "lmfleet_registry.py": _ended(self.params["plugin"]),
            "gateway_server.py": _ended(self.params["server"]),
            "run-gateway": _ended(self.params["launcher"]),
            "release.json": canonical_json(service),
            "gateway.env": environment,
            "gateway_runner.py": _ended(self.params["runner"]),
            "client_keys.json": self.client_keys(key, self.params["master_key_grace"]),
            **({"salt_key": database_key + "\n"} if database_key else {}),
            "master_key": key + "\n",
        }

    def database_key(self, key: str) -> str:
        """Return what LiteLLM is to encrypt with in its database, "" where that is not ours to say.

        It is the first master key that the gateway had with it, for as long as the folder is there.
        """
        given = {**self.params["service_environment"], **self.params["environment"]}
        if not self.params["database_url"] or _litellm.DATABASE_KEY_VARIABLE in given:
            return ""
        kept = ((self.content(name) or "").strip() for name in ("salt_key", "master_key"))
        return next(filter(None, kept), key)

    def variables(self, key: str, database_key: str) -> dict:
        """Return the environment of the gateway, secrets and all."""
        variables = {**self.params["service_environment"], **self.params["environment"]}
        variables[_litellm.MASTER_KEY_VARIABLE] = key
        if self.params["redis_url"]:
            variables[_litellm.REDIS_VARIABLE] = self.params["redis_url"]
        if self.params["database_url"]:
            variables[_litellm.DATABASE_VARIABLE] = self.params["database_url"]
            if database_key:
                variables[_litellm.DATABASE_KEY_VARIABLE] = database_key
            variables["PYTHONPATH"] = self.path(self.database)
        return variables

    def secret_values(self) -> set[str]:
        """Return what no message may have in it, beyond the parameters that are secrets themselves."""
        given = {**self.params["service_environment"], **self.params["environment"]}
        kept = {name: (self.content(name) or "").strip() for name in ("salt_key", "master_key")}
        return _litellm.secret_values({**given, **kept})

    def client_keys(self, key: str, grace: float | None) -> str:
        """Return the text of the file with the keys that clients may send; without a `grace`, none of them ends yet."""
        text = self.content("client_keys.json")
        try:
            before = json.loads(text) if text else None
            if grace is None:
                return canonical_json(_gateway_release.keys_with(before, key))
            return canonical_json(_gateway_release.keys_after(before, key, grace, time.time()))
        except (ValueError, TypeError, KeyError, AttributeError):
            return canonical_json(_gateway_release.keys_with(None, key))

    def complete(self, folder: str) -> bool:
        """Return whether a virtual environment was built to its end."""
        return os.path.exists(self.path(folder, _litellm.MARKER))

    def current(self) -> str | None:
        """Return the name of the release in use, or None."""
        return _link(self.path("current"))

    def current_venv(self) -> str | None:
        """Return the name of the virtual environment in use, or None."""
        return _link(self.path("current", "venv"))

    def releases(self) -> list[str]:
        """Return the names of all releases."""
        try:
            return os.listdir(self.path("releases"))
        except FileNotFoundError:
            return []

    def runner_lives(self) -> bool:
        """Return whether there is a process that may be the runner, whether it says something or not."""
        document = read_json(self.path("status.json"))
        if not isinstance(document, dict) or not isinstance(document.get("pid"), int):
            return False
        try:
            os.kill(document["pid"], 0)
        except OSError:
            return False
        return True

    def status(self, patience: float = 0.0) -> _gateway_release.Status | None:
        """Return what the runner says, or None when none runs.

        One that has a process but has said nothing for a while gets `patience` seconds: the Mac may have just woken up.
        """
        give_up = time.monotonic() + patience
        while True:
            alive = self.runner_lives()
            status = _gateway_release.live_status(read_json(self.path("status.json")), alive, time.time())
            if status or not alive or time.monotonic() >= give_up:
                return status
            time.sleep(POLL)

    def installed(self, release: str) -> set[str]:
        """Return the names of the installed folders that a release runs with."""
        links = (_link(self.path("releases", release, kind)) for kind in ("venv", "database"))
        return {name for name in links if name}

    def folders(self, kind: str) -> dict:
        """Return the name of each installed folder of one kind, whole or not, to when it served, 0 for never."""
        names = [name for name in os.listdir(self.root) if re.fullmatch(kind + r"-[0-9a-f]{12}", name)]
        return {name: self.served_at(name) for name in names}

    def served_at(self, folder: str) -> float:
        """Return when an installed folder last began or ceased to serve, 0 for never."""
        try:
            return os.stat(self.path(folder, _litellm.SERVED)).st_mtime
        except FileNotFoundError:
            return 0.0

    # -- changing it

    def command(self, what: str, argv: list[str], extra: dict | None = None) -> str:
        """Run one step of the installation and return its output; raises GatewayError."""
        environment = {**os.environ, **{name: str(value) for name, value in self.params["environment"].items()}}
        environment.update(extra or {})
        result = run(argv, self.params["timeout"], environment)
        if result.rc != 0:
            raise GatewayError(
                f"{what} failed: {result.said()[-2000:]}\n"
                "Look whether the package index, or the mirror that litellm_environment names, can be reached from "
                "this Mac; then run again."
            )
        return result.out

    def build(self, folder: str, what: str, steps) -> None:
        """Build a virtual environment by `steps`; a marker written last says that it is whole."""
        shutil.rmtree(self.path(folder), ignore_errors=True)
        try:
            steps(self.path(folder))
            atomic_write(self.path(folder, _litellm.MARKER), what + "\n")
        except BaseException:
            shutil.rmtree(self.path(folder), ignore_errors=True)
            raise

    def install_tools(self, folder: str) -> None:
        """Install uv, with the Python and the pip of this Mac."""
        self.command("making a virtual environment for uv", [sys.executable, "-m", "venv", folder])
        requirements = os.path.join(folder, "requirements.txt")
        atomic_write(requirements, self.params["uv_requirements"])
        argv = [os.path.join(folder, "bin", "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        argv += ["--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", requirements]
        self.command("installing uv", argv)

    def install_gateway(self, folder: str) -> None:
        """Install LiteLLM and all it needs, by the lock."""
        uv = self.path(self.tools, "bin", "uv")
        own = {"UV_PYTHON_INSTALL_DIR": self.path("python"), "UV_NO_PROGRESS": "1", "UV_NO_CACHE": "1"}
        python = self.params["python"]
        if python:
            code = "import sys; print(*sys.version_info[:2])"
            version = self.command(f"asking {python} for its version", [python, "-c", code])
            problem = _litellm.python_problem(python, [int(part) for part in version.split()])
            if problem:
                raise GatewayError(problem)
            source = ["--no-python-downloads", "--python", python]
        else:
            wanted = self.params["python_version"]
            self.command(f"installing Python {wanted}", [uv, "python", "install", "--no-bin", wanted], own)
            source = ["--no-python-downloads", "--managed-python", "--python", wanted]
        self.command("making the virtual environment", [uv, "venv", "--quiet", "--no-project", *source, folder], own)
        requirements = os.path.join(folder, "requirements.txt")
        atomic_write(requirements, self.params["requirements"])
        argv = [uv, "pip", "sync", "--quiet", "--no-cache", "--python", os.path.join(folder, "bin", "python")]
        argv += ["--require-hashes", "--only-binary", ":all:", "--compile-bytecode", requirements]
        self.command(f"installing LiteLLM {self.params['version']}", argv, own)

    def install_database_client(self, folder: str) -> None:
        """Install Prisma, and have it write the code with which this LiteLLM reaches a database."""
        python = self.path(self.venv, "bin", "python")
        os.mkdir(folder)
        requirements = os.path.join(folder, "requirements.txt")
        atomic_write(requirements, self.params["database_requirements"])
        argv = [self.path(self.tools, "bin", "uv"), "pip", "install", "--quiet", "--no-cache", "--no-deps"]
        argv += [
            "--python",
            python,
            "--target",
            folder,
            "--require-hashes",
            "--only-binary",
            ":all:",
            "-r",
            requirements,
        ]
        self.command("installing Prisma", argv, {"UV_NO_PROGRESS": "1"})
        found = glob.glob(
            self.path(self.venv, "lib", "python3.*", "site-packages", "litellm", "proxy", "schema.prisma")
        )
        if len(found) != 1:
            raise GatewayError(f"LiteLLM {self.params['version']} has no schema.prisma, so it can use no database.")
        schema = os.path.join(folder, "schema.prisma")
        atomic_write(schema, _litellm.native_schema((read_bytes(found[0]) or b"").decode("utf-8")))
        # Prisma looks for its generator, and for Node, on the path.
        given = {**os.environ, **self.params["service_environment"], **self.params["environment"]}
        path = os.path.join(folder, "bin") + os.pathsep + str(given.get("PATH", os.defpath))
        argv = [python, "-m", "prisma", "generate", "--schema", schema]
        self.command("making the database client", argv, {"PATH": path, "PYTHONPATH": folder})

    def prepare(self, name: str, texts: dict) -> None:
        """Make the folder of a release, and have LiteLLM read it; raises GatewayError."""
        folder = self.path("releases", name)
        shutil.rmtree(folder, ignore_errors=True)
        make_directory(folder, 0o700)
        for file, mode in RELEASE.items():
            atomic_write(os.path.join(folder, file), texts[file], mode)
        os.symlink(os.path.join("..", "..", self.venv), os.path.join(folder, "venv"))
        if self.database:
            os.symlink(os.path.join("..", "..", self.database), os.path.join(folder, "database"))
        self.check_config(folder, texts)

    def check_config(self, folder: str, texts: dict) -> None:
        """Have LiteLLM read the configuration in `folder`; raises GatewayError."""
        source = self.params["config_source"]
        config = os.path.join(folder, "config.yaml")
        parsed = run([self.path(self.venv, "bin", "python"), "-c", CHECK_YAML, config], CHECK_TIMEOUT)
        text = texts["config.yaml"]
        if parsed.rc != 0:
            said = parsed.said()
            line = re.match(r"line (\d+)", said)
            place = f" ({_litellm.quoted_line(int(line.group(1)), text)})" if line else ""
            raise GatewayError(f"{source} renders to something that is not a YAML mapping: {said}{place}")
        # Without the database: what it says is no matter of the configuration.
        keys = (texts.get(name, "").strip() for name in ("master_key", "salt_key"))
        variables = {**self.variables(*keys), _litellm.DATABASE_VARIABLE: ""}
        # The runner alone sets LMFLEET_REGISTRY: here the plugin stays idle and is not taken for a worker.
        environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
        argv = [self.path(self.venv, "bin", "litellm"), "--config", config, "--validate_config"]
        checked = run(argv, CHECK_TIMEOUT, environment, folder)
        said = checked.out + checked.err
        unknown = re.findall(r"Key '([^']+)' is not a valid argument for Router", said)
        if unknown:
            lines = ", ".join(_litellm.where(key, text) for key in unknown)
            raise GatewayError(f"{source}: LiteLLM knows no router setting {lines}. Correct litellm_router_settings.")
        if checked.rc != 0:
            reasons = [line for line in said.splitlines() if "config validation failed" in line]
            reason = reasons[-1] if reasons else checked.said()[-2000:]
            argv = [self.path(self.venv, "bin", "python"), "-c", FIND_ENTRY, config]
            line = re.search(r"found in line ([1-9]\d*)", run(argv, CHECK_TIMEOUT, environment, folder).out)
            place = _litellm.quoted_line(int(line.group(1)), text) if line else _litellm.lines_named(reason, text)
            raise GatewayError(f"{source}: LiteLLM refuses it: {reason}" + (place and f" ({place})"))

    def write(self, name: str, text: str) -> None:
        """Write a file beside the releases."""
        atomic_write(self.path(name), text, LASTING[name])

    def switch(self, name: str | None) -> None:
        """Make `current` the release `name`, in one step; None removes the link."""
        temporary = self.path(".current")
        if os.path.lexists(temporary):
            os.unlink(temporary)
        if name is None:
            os.unlink(self.path("current"))
            return
        os.symlink(os.path.join("releases", name), temporary)
        os.replace(temporary, self.path("current"))

    def wait(self, name: str) -> str:
        """Return "" once the runner serves the release `name`, or why it does not."""
        timeout = self.params["service"]["start_timeout"] + RUNNER_GRACE
        deadline = time.monotonic() + timeout
        while True:
            status = self.status()
            outcome = _gateway_release.outcome(status, name)
            if outcome is not None:
                return outcome
            if time.monotonic() >= deadline:
                seen = status.said() if status else "no runner"
                return f"the runner did not serve it within {timeout} s; last seen: {seen}"
            time.sleep(POLL)

    def handed_over(self, before: str | None, name: str) -> None:
        """Note that the release `name` serves in the place of `before`."""
        for release in filter(None, (before, name)):
            for folder in self.installed(release):
                atomic_write(self.path(folder, _litellm.SERVED), "")

    def tidy(self) -> list[str]:
        """Remove what is not used any more, and return its names."""
        status = self.status()
        if status is None and self.runner_lives():
            return []  # nobody knows what it runs
        kept = {self.current(), *(status.running() if status else ())}
        for name in self.releases():
            if name not in kept:
                shutil.rmtree(self.path("releases", name), ignore_errors=True)
        in_use = {self.venv, self.database}.union(*(self.installed(name) for name in self.releases()))
        removed = [name for kind in ("venv", "database") for name in _litellm.superfluous(self.folders(kind), in_use)]
        for name in removed:
            shutil.rmtree(self.path(name), ignore_errors=True)
        return removed


def performance_cores() -> int:
    """Return the number of fast cores of this machine, of all where they are of one kind."""
    counted = run(["/usr/sbin/sysctl", "-n", "hw.perflevel0.physicalcpu"], 30)
    return int(counted.out) if counted.rc == 0 and counted.out.strip().isdigit() else os.cpu_count() or 1


def _mapping(params: dict, name: str) -> dict:
    try:
        value = json.loads(params[name] or "{}")
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise GatewayError(f"{name} is not the JSON text of a mapping.")
    return value


def _text(params: dict, name: str) -> str:
    try:
        value = json.loads(params[name])
    except ValueError:
        value = None
    if not isinstance(value, str):
        raise GatewayError(f"{name} is not a JSON string: give the text with the filter to_json.")
    return value


def _ended(text: str) -> str:
    return text.rstrip("\n") + "\n"


def _link(path: str) -> str | None:
    try:
        return os.path.basename(os.readlink(path))
    except OSError:
        return None


def plan(gateway: Gateway, texts: dict) -> list[str]:
    """Return what must be done, in order."""
    actions = []
    if not gateway.complete(gateway.venv):
        actions += ([] if gateway.complete(gateway.tools) else ["tools"]) + ["venv"]
    if gateway.database and not gateway.complete(gateway.database):
        actions += [name for name in ("tools",) if name not in actions and not gateway.complete(gateway.tools)]
        actions.append("database")
    different = [name for name in texts if gateway.text(name) != texts[name]]
    actions += different
    status = gateway.status()
    refused = bool(status and status.refused and status.refused["release"] == gateway.current())
    if refused or gateway.current_venv() != gateway.venv or set(different) & set(RELEASE):
        actions.append("switch")
    return actions


def carry_out(gateway: Gateway, texts: dict, actions: list[str]) -> None:
    """Do what was planned; raises GatewayError, and OSError for what the file system refuses."""
    if "tools" in actions:
        gateway.build(gateway.tools, "uv", gateway.install_tools)
    if "venv" in actions:
        gateway.build(gateway.venv, "LiteLLM " + gateway.params["version"], gateway.install_gateway)
    if "database" in actions:
        gateway.build(gateway.database, "Prisma", gateway.install_database_client)
    if "gateway_runner.py" in actions:
        gateway.write("gateway_runner.py", texts["gateway_runner.py"])
    if "switch" in actions:
        release(gateway, texts)
    # In this order: the one is made of what the other has been.
    for name in ("salt_key", "master_key"):
        if name in actions:
            gateway.write(name, texts[name])
    if "client_keys.json" in actions:
        # The time of grace begins now, however long the installation and the trial took.
        key = texts["master_key"].strip()
        gateway.write("client_keys.json", gateway.client_keys(key, gateway.params["master_key_grace"]))


def release(gateway: Gateway, texts: dict) -> None:
    """Make a release of what is wanted and have it served; the one before stays when that fails."""
    before, keys_before = gateway.current(), gateway.content("client_keys.json")
    key = texts["master_key"].strip()
    name = _gateway_release.next_name(gateway.releases())
    folder = gateway.path("releases", name)
    try:
        gateway.prepare(name, texts)
        status = gateway.status(RUNNER_GRACE)
        if status and status.serving:
            # To find out costs memory for a while, but no client a request.
            try:
                trial(folder, gateway.root, key, gateway.params["service"]["start_timeout"], bool(gateway.database))
            except TrialError as error:
                reason = f"on trial beside the one in use, {error}"
                raise GatewayError(_trouble(gateway, reason, texts["config.yaml"])) from None
        # From here on the servers in use take the new key as well: clients may have it before the switch is over.
        gateway.write("client_keys.json", gateway.client_keys(key, None))
        gateway.switch(name)
        # Without a runner nobody serves anything; the job is started with this release.
        reason = gateway.wait(name) if status else ""
        if reason:
            raise GatewayError(_trouble(gateway, reason, texts["config.yaml"]))
        gateway.handed_over(before, name)
    except BaseException:
        if gateway.current() == name:
            gateway.switch(before)
        if keys_before is not None:
            gateway.write("client_keys.json", keys_before)
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _trouble(gateway: Gateway, reason: str, config: str) -> str:
    version, source = gateway.params["version"], gateway.params["config_source"]
    named = _litellm.lines_named(reason, config)
    place = f" Of the config, which {source} renders to, it names: {named}." if named else ""
    return f"the new release (LiteLLM {version}) is no good, and the one before still serves: {reason}.{place}"


def diff_of(gateway: Gateway, texts: dict, actions: list[str]) -> list[dict]:
    """Return the diff of what was planned, without secrets. To be called before it is done."""
    entries = []
    for name in (name for name in texts if name in actions):
        before, after = gateway.text(name), texts[name]
        if name == "gateway.env":
            before, after = _litellm.environment_diff(before, after)
        elif name in SECRET:
            before, after = (None if before is None else "(hidden)\n"), "(hidden, new)\n"
        elif name == "config.yaml":
            before, after = _litellm.without_secrets(before), _litellm.without_secrets(after)
        entries.append(file_diff(gateway.place(name), before, after))
    before = gateway.current_venv()
    if before != gateway.venv:
        after = f"{gateway.venv} (LiteLLM {gateway.params['version']})\n"
        entries.append(file_diff(gateway.path("current", "venv"), before and before + "\n", after))
    return entries


def converge(module: AnsibleModule, gateway: Gateway) -> dict:
    """Plan and, unless in check mode, do it; return the result."""
    texts = gateway.wanted()
    actions = plan(gateway, texts)
    result = {
        "root": gateway.root,
        "user": gateway.account.pw_name,
        "home": gateway.account.pw_dir,
        "venv": gateway.path(gateway.venv),
        "registry": gateway.path("registry"),
        "master_key_file": gateway.path("master_key"),
        "fingerprint": _litellm.fingerprint(texts["gateway_runner.py"]),
        "actions": actions,
        "diff": diff_of(gateway, texts, actions),
    }
    if "gateway_runner.py" in actions and gateway.status():
        module.warn("The gateway's runner is another one, so its job restarts: requests of that moment fail.")
    # What a former run had to leave to its last requests is removed when they have ended: no change of this one.
    changed = bool(actions)
    if not module.check_mode:
        carry_out(gateway, texts, actions)
        actions += ["remove"] * bool(gateway.tidy())
    status, name = gateway.status(), gateway.current()
    unconfirmed = not module.check_mode and not (status and status.serving == name)
    return {"changed": changed, "release": name, "unconfirmed": unconfirmed, **result}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "user": {"type": "str"},
            "version": {"type": "str", "required": True},
            "requirements": {"type": "str", "required": True},
            "uv_requirements": {"type": "str", "required": True},
            "python": {"type": "path"},
            "python_version": {"type": "str", "default": "3.12.16"},
            "environment": {"type": "json", "no_log": True},
            "service_environment": {"type": "json", "no_log": True},
            "database_url": {"type": "str", "no_log": True},
            "database_requirements": {"type": "str", "default": ""},
            "service": {
                "type": "dict",
                "default": {},
                "apply_defaults": True,
                "options": {
                    "address": {"type": "str", "default": "127.0.0.1"},
                    "port": {"type": "int", "default": 4000},
                    "workers": {"type": "int", "default": 1},
                    "start_timeout": {"type": "int", "default": 120},
                    "drain_timeout": {"type": "int", "default": 600},
                    "log_size_mb": {"type": "int", "default": 10},
                    "log_files": {"type": "int", "default": 5},
                },
            },
            "config": {"type": "json", "required": True, "no_log": True},
            "config_source": {"type": "str", "default": "config"},
            "plugin": {"type": "str", "required": True},
            "launcher": {"type": "str", "required": True},
            "server": {"type": "str", "required": True},
            "runner": {"type": "str", "required": True},
            "master_key": {"type": "str", "default": "", "no_log": True},
            "master_key_grace": {"type": "int", "default": 300, "no_log": False},
            "redis_url": {"type": "str", "default": "", "no_log": True},
            "timeout": {"type": "int", "default": 1200},
        },
        supports_check_mode=True,
    )
    try:
        gateway = Gateway(module.params)
        module.no_log_values.update(gateway.secret_values())
        gateway.refuse_what_cannot_be()
        if module.check_mode:
            result = converge(module, gateway)
        else:
            make_directory(gateway.root)
            make_directory(gateway.path("logs"))
            make_directory(gateway.path("releases"), 0o700)
            with exclusive(gateway.root, "litellm_gateway", LOCK_TIMEOUT):
                end_leftovers(gateway.root)
                result = converge(module, gateway)
    except (GatewayError, LockTimeoutError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{module.params['root']}: {error}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
