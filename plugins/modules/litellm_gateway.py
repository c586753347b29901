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
    hashes, the configuration, the plugin that follows the registry, a launcher, and a file with the environment and
    the master key that only its user can read.
  - A new version is installed beside the one in use. The switch is a symbolic link, and the former one is kept.
  - A new configuration is checked with the LiteLLM it is for before it takes the place of the one in use.
  - Starts and restarts nothing. Put RV(fingerprint) into the launchd job, so that the job changes when the gateway
    must be restarted.
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
      - Environment variables for the installation and for the gateway, such as those for a proxy or a mirror.
    type: dict
    default: {}
  service_environment:
    description:
      - Environment variables for the gateway only. O(environment) comes before it.
    type: dict
    default: {}
  database_url:
    description:
      - Address of a Postgres database, with user and password, as V(postgresql://user:password@host:5432/litellm).
        Where it is set, O(database_requirements) must pin C(prisma), which LiteLLM reaches its database with.
      - LiteLLM gets it as C(DATABASE_URL), in the file that only its user can read.
    type: str
  database_requirements:
    description:
      - Text of the lock of what LiteLLM needs for a database beyond O(requirements).
    type: str
    default: ""
  config:
    description:
      - Text of C(config.yaml).
    type: str
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
      - Text of C(run-gateway), the program that the launchd job runs.
    type: str
    required: true
  master_key:
    description:
      - The master key, which clients send. When it is empty, one is made once and kept.
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
    config: "{{ lookup('ansible.builtin.template', 'config.yaml.j2') }}"
    plugin: "{{ lookup('ansible.builtin.file', 'lmfleet_registry.py') }}"
    launcher: "{{ lookup('ansible.builtin.template', 'run-gateway.j2') }}"
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
fingerprint:
  description: A hash that is another one whenever the gateway must be restarted.
  returned: success
  type: str
actions:
  description: What was done, out of C(tools), C(venv), C(database), C(switch), C(remove) and the names of files.
  returned: success
  type: list
  elements: str
  sample: [config.yaml]
"""

import glob
import os
import pwd
import re
import secrets
import shutil
import stat
import sys
import tempfile

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _litellm
from ..module_utils._command import run
from ..module_utils._files import LockTimeoutError, atomic_write, exclusive, file_diff, make_directory, read_bytes

#: Name of each file to the mode it has.
MODES = {
    "config.yaml": 0o600,
    "lmfleet_registry.py": 0o644,
    "run-gateway": 0o755,
    "gateway.env": 0o600,
    "master_key": 0o600,
}
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


class GatewayError(Exception):
    """What stops the module, with the next step in its text."""


class Gateway:
    """The folder of a gateway: what is in it, and how to change it."""

    def __init__(self, params: dict) -> None:
        self.params = params
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
        user = self.params["user"]
        if user and user != self.account.pw_name:
            raise GatewayError(
                f"the gateway shall belong to {user}, but Ansible is logged in as {self.account.pw_name}. "
                f"Log in as {user} (ansible_user)."
            )
        if _litellm.MASTER_KEY_VARIABLE in self.params["environment"]:
            raise GatewayError(f"{_litellm.MASTER_KEY_VARIABLE} is in the environment; give the key as master_key.")

    def text(self, name: str) -> str | None:
        """Return the text of a file, or None when it is absent or has another mode than it must."""
        path = self.path(name)
        content = read_bytes(path)
        if content is None or stat.S_IMODE(os.stat(path).st_mode) != MODES[name]:
            return None
        return content.decode("utf-8", "replace")

    def wanted(self) -> dict:
        """Return name to text of all files."""
        key = self.params["master_key"] or (self.text("master_key") or "").strip() or "sk-" + secrets.token_hex(24)
        variables = dict(self.params["service_environment"])
        variables.update(self.params["environment"])
        variables[_litellm.MASTER_KEY_VARIABLE] = key
        if self.params["database_url"]:
            variables[_litellm.DATABASE_VARIABLE] = self.params["database_url"]
            variables["PYTHONPATH"] = self.path(self.database)
        salt = _litellm.salt_of(self.text("gateway.env")) or secrets.token_hex(16)
        try:
            environment = _litellm.Environment(variables, salt).render()
        except ValueError as error:
            raise GatewayError(f"{error}. Correct litellm_environment.") from None
        return {
            "config.yaml": self.params["config"].rstrip("\n") + "\n",
            "lmfleet_registry.py": self.params["plugin"].rstrip("\n") + "\n",
            "run-gateway": self.params["launcher"].rstrip("\n") + "\n",
            "gateway.env": environment,
            "master_key": key + "\n",
        }

    def complete(self, folder: str) -> bool:
        """Return whether a virtual environment was built to its end."""
        return os.path.exists(self.path(folder, _litellm.MARKER))

    def current(self) -> str | None:
        """Return the name of the virtual environment in use, or None."""
        try:
            return os.readlink(self.path("current"))
        except OSError:
            return None

    def venvs(self) -> dict:
        """Return name to change time of what is there of virtual environments, whole or not."""
        return self.folders("venv")

    def folders(self, kind: str) -> dict:
        """Return name to change time of the installed folders of one kind, whole or not."""
        names = [name for name in os.listdir(self.root) if re.fullmatch(kind + r"-[0-9a-f]{12}", name)]
        return {name: os.stat(self.path(name)).st_mtime for name in names}

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

    def check_config(self, texts: dict) -> None:
        """Have LiteLLM read the new configuration, beside the one in use; raises GatewayError."""
        source = self.params["config_source"]
        folder = tempfile.mkdtemp(prefix=".check-", dir=self.root)
        try:
            for name in ("config.yaml", "lmfleet_registry.py"):
                atomic_write(os.path.join(folder, name), texts[name], 0o600)
            config = os.path.join(folder, "config.yaml")
            parsed = run([self.path(self.venv, "bin", "python"), "-c", CHECK_YAML, config], CHECK_TIMEOUT)
            if parsed.rc != 0:
                raise GatewayError(f"{source} renders to something that is not a YAML mapping: {parsed.said()}")
            variables = {**self.params["service_environment"], **self.params["environment"]}
            variables[_litellm.MASTER_KEY_VARIABLE] = texts["master_key"].strip()
            # The launcher alone sets LMFLEET_REGISTRY: here the plugin stays idle and is not taken for a worker.
            environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
            argv = [self.path(self.venv, "bin", "litellm"), "--config", config, "--validate_config"]
            checked = run(argv, CHECK_TIMEOUT, environment, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        said = checked.out + checked.err
        unknown = re.findall(r"Key '([^']+)' is not a valid argument for Router", said)
        if unknown:
            raise GatewayError(
                f"{source}: LiteLLM knows no router setting {', '.join(unknown)}. Correct litellm_router_settings."
            )
        if checked.rc != 0:
            reason = [line for line in said.splitlines() if "config validation failed" in line]
            raise GatewayError(f"{source}: LiteLLM refuses it: {reason[-1] if reason else checked.said()[-2000:]}")

    def switch(self) -> None:
        """Make `current` the wanted virtual environment, in one step."""
        temporary = self.path(".current")
        if os.path.lexists(temporary):
            os.unlink(temporary)
        os.symlink(self.venv, temporary)
        os.replace(temporary, self.path("current"))


def plan(gateway: Gateway, texts: dict) -> list[str]:
    """Return what must be done, in order."""
    actions = []
    if not gateway.complete(gateway.venv):
        actions += ([] if gateway.complete(gateway.tools) else ["tools"]) + ["venv"]
    if gateway.database and not gateway.complete(gateway.database):
        actions += [name for name in ("tools",) if name not in actions and not gateway.complete(gateway.tools)]
        actions.append("database")
    actions += [name for name in texts if gateway.text(name) != texts[name]]
    if gateway.current() != gateway.venv:
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
    if {"venv", "switch", "config.yaml", "lmfleet_registry.py"} & set(actions):
        gateway.check_config(texts)
    for name in texts:
        if name in actions:
            atomic_write(gateway.path(name), texts[name], MODES[name])
    if "switch" in actions:
        gateway.switch()


def diff_of(gateway: Gateway, texts: dict, actions: list[str]) -> list[dict]:
    """Return the diff of what was planned, without secrets. To be called before it is done."""
    entries = []
    for name in (name for name in texts if name in actions):
        before, after = gateway.text(name), texts[name]
        if name == "gateway.env":
            before, after = _litellm.environment_diff(before, after)
        elif name == "master_key":
            before, after = (None if before is None else "(hidden)\n"), "(hidden, new)\n"
        elif name == "config.yaml":
            before, after = _litellm.without_secrets(before), _litellm.without_secrets(after)
        entries.append(file_diff(gateway.path(name), before, after))
    if "switch" in actions:
        before = gateway.current()
        after = f"{gateway.venv} (LiteLLM {gateway.params['version']})\n"
        entries.append(file_diff(gateway.path("current"), before and before + "\n", after))
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
        "fingerprint": _litellm.fingerprint(
            gateway.venv, {name: texts[name] for name in texts if name != "master_key"}
        ),
        "actions": actions,
        "diff": diff_of(gateway, texts, actions),
    }
    if not module.check_mode:
        carry_out(gateway, texts, actions)
        superfluous = _litellm.superfluous(gateway.venvs(), gateway.venv)
        superfluous += _litellm.superfluous(gateway.folders("database"), gateway.database)
        for name in superfluous:
            shutil.rmtree(gateway.path(name), ignore_errors=True)
        actions += ["remove"] * bool(superfluous)
    return {"changed": bool(actions), **result}


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
            "environment": {"type": "dict", "default": {}},
            "service_environment": {"type": "dict", "default": {}},
            "database_url": {"type": "str", "no_log": True},
            "database_requirements": {"type": "str", "default": ""},
            "config": {"type": "str", "required": True},
            "config_source": {"type": "str", "default": "config"},
            "plugin": {"type": "str", "required": True},
            "launcher": {"type": "str", "required": True},
            "master_key": {"type": "str", "default": "", "no_log": True},
            "timeout": {"type": "int", "default": 1200},
        },
        supports_check_mode=True,
    )
    gateway = Gateway(module.params)
    try:
        gateway.refuse_what_cannot_be()
        if module.check_mode:
            result = converge(module, gateway)
        else:
            for folder in ("", "logs"):
                make_directory(gateway.path(folder).rstrip("/"))
            with exclusive(gateway.root, "litellm_gateway", LOCK_TIMEOUT):
                result = converge(module, gateway)
    except (GatewayError, LockTimeoutError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{gateway.root}: {error}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
