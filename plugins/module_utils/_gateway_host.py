# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder of a gateway: what is in it, how it is installed, and how its runner is told."""

from __future__ import annotations

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

from . import _gateway_release, _litellm
from ._command import run
from ._files import atomic_write, canonical_json, make_directory, read_bytes, read_json
from ._processes import alive

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
MODES = {**RELEASE, **LASTING}
#: Seconds beyond its own timeout in which the runner tells what became of a release.
RUNNER_GRACE = 30
POLL = 0.2
CHECK_TIMEOUT = 180
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
        return isinstance(document, dict) and alive(document.get("pid"), of_this_user=True)

    def status(self, patience: float = 0.0) -> _gateway_release.Status | None:
        """Return what the runner says, or None when none runs.

        One that has a process but has said nothing for a while gets `patience` seconds: the Mac may have just woken up.
        """
        give_up = time.monotonic() + patience
        while True:
            lives = self.runner_lives()
            status = _gateway_release.live_status(read_json(self.path("status.json")), lives, time.time())
            if status or not lives or time.monotonic() >= give_up:
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

    def wait(self, outcome, what: str) -> str:
        """Return what `outcome` makes of the runner's status once it is not None, or that the runner did not `what`."""
        timeout = self.params["service"]["start_timeout"] + RUNNER_GRACE
        deadline = time.monotonic() + timeout
        while True:
            status = self.status()
            found = outcome(status)
            if found is not None:
                return found
            if time.monotonic() >= deadline:
                seen = status.said() if status else "no runner"
                return f"the runner did not {what} within {timeout} s; last seen: {seen}"
            time.sleep(POLL)

    def exchange_runner(self, text: str) -> None:
        """Write the runner's program and have the runner that there is go on as that; raises GatewayError.

        One of former times cannot: its property list was another one, too, so launchd starts its job anew.
        """
        before, status = self.content("gateway_runner.py"), self.status(RUNNER_GRACE)
        self.write("gateway_runner.py", text)
        if status is None or status.program is None:
            return
        program, written = _litellm.fingerprint(text), os.stat(self.path("gateway_runner.py")).st_mtime_ns
        reason = self.wait(
            lambda seen: _gateway_release.handed_over(seen, program, written), "go on as another program"
        )
        if reason:
            message = f"the new runner of the gateway is no good, and the one before goes on: {reason}"
            if before is None or _litellm.fingerprint(before) != status.program:
                # A run that was killed had written it already.
                raise GatewayError(f"{message}. Its file is the new one: what a restart of the Mac would begin with")
            self.write("gateway_runner.py", before)
            raise GatewayError(message)

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
