# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules that hold for every file of a kind, so that a new one follows them too."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
FARM = REPOSITORY / "collections" / "ansible_collections" / "lmfleet" / "mac"
MODULES = sorted((REPOSITORY / "plugins" / "modules").glob("*.py"))
ROLES = sorted(path for path in (REPOSITORY / "roles").iterdir() if path.is_dir())
ON_A_MAC = [
    *MODULES,
    *sorted((REPOSITORY / "plugins" / "module_utils").glob("*.py")),
    *sorted((REPOSITORY / "roles").glob("*/files/**/*.py")),
]
LOCKS = [*sorted((REPOSITORY / "requirements").glob("*.txt")), *sorted((REPOSITORY / "roles").glob("*/files/*.txt"))]
# Joined here, so that this file does not name them either.
REGISTRY_HOSTS = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("deb", "debian", "org"),
        ("npmjs", "org"),
        ("galaxy", "ansible", "com"),
    )
]


def relative(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def repository_files() -> list[Path]:
    """Return the files that are, or would be, under version control."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    paths = [REPOSITORY / name for name in listed.split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def module_texts(module: Path) -> dict[str, str]:
    """Return the string constants (DOCUMENTATION, EXAMPLES, RETURN) of a module."""
    return {
        node.targets[0].id: node.value.value
        for node in ast.parse(module.read_text()).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_defaults_of_a_role_are_those_of_its_argument_spec(role):
    specification = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())["argument_specs"]["main"]
    defaults_file = role / "defaults" / "main.yml"
    defaults = (yaml.safe_load(defaults_file.read_text()) or {}) if defaults_file.exists() else {}
    options = specification["options"]
    assert defaults == {name: option["default"] for name, option in options.items() if "default" in option}


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_variables_of_a_role_carry_its_name(role):
    specification = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())["argument_specs"]["main"]
    assert [name for name in specification["options"] if not name.startswith(f"{role.name}_")] == []


@pytest.mark.parametrize("tasks", sorted(REPOSITORY.glob("roles/*/tasks/*.yml")), ids=relative)
def test_the_result_of_each_task_of_a_role_is_kept(tasks):
    # playbooks/verify.yml runs the tasks in check mode and reads from these variables what is not as declared.
    role = tasks.parts[-3]
    unkept = [
        task["name"]
        for task in tasks_of(yaml.safe_load(tasks.read_text()))
        if any(key.startswith("lmfleet.mac.") for key in task)
        and not task.get("register", "").removeprefix("__").startswith(role)
    ]
    assert unkept == []


@pytest.mark.parametrize("file", sorted(REPOSITORY.glob("roles/**/*.yml")), ids=relative)
def test_what_a_role_does_in_check_mode_is_decided_by_its_modules(file):
    # ansible_check_mode tells of --check only; playbooks/verify.yml sets check_mode for the tasks.
    assert "ansible_check_mode" not in file.read_text()


def tasks_of(tasks: list):
    """Yield the tasks of a list, those in blocks included."""
    for task in tasks:
        yield task
        for part in ("block", "rescue", "always"):
            yield from tasks_of(task.get(part, []))


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_module_has_a_unit_test(module):
    assert list((REPOSITORY / "tests" / "unit").rglob(f"test_{module.stem}.py"))


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_examples_of_a_module_fit_its_options(module):
    texts = module_texts(module)
    documented = yaml.safe_load(texts["DOCUMENTATION"]).get("options", {})
    # An option with this prefix is a variable of the inventory, which the fleet plan reads; no task gives it.
    options = {name: option for name, option in documented.items() if not name.startswith("lmfleet_")}
    uses = list(arguments_of(f"lmfleet.mac.{module.stem}", yaml.safe_load(texts["EXAMPLES"])))
    assert uses, "no example uses the module by its full name"
    assert [problem for arguments in uses for problem in misfits(arguments or {}, options, module.stem)] == []


def arguments_of(action: str, node):
    """Yield the arguments of each task, at any depth of ``node``, that calls ``action``."""
    if isinstance(node, list):
        for element in node:
            yield from arguments_of(action, element)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key == action:
                yield value
            else:
                yield from arguments_of(action, value)


def misfits(arguments, options: dict, where: str):
    """Yield a sentence for each argument that ``options`` does not have, and each required one that is missing."""
    if isinstance(arguments, str):  # a template: what it gives is known at run time only
        return
    names = {name: option for key, option in options.items() for name in (key, *option.get("aliases", []))}
    yield from (f"{where}: there is no option {name}" for name in arguments if name not in names)
    yield from (
        f"{where}: {name} is required"
        for name, option in options.items()
        if option.get("required") and not {name, *option.get("aliases", [])} & set(arguments)
    )
    for name, value in arguments.items():
        suboptions = names.get(name, {}).get("suboptions")
        for element in value if isinstance(value, list) else [value]:
            if suboptions and isinstance(element, dict):
                yield from misfits(element, suboptions, f"{where}.{name}")


@pytest.mark.parametrize("path", ON_A_MAC, ids=relative)
def test_syntax_of_what_runs_on_a_mac_is_that_of_python_3_9(path):
    ast.parse(path.read_text(), filename=str(path), feature_version=(3, 9))


@pytest.mark.parametrize("path", [path for path in ON_A_MAC if "litellm" not in path.parts], ids=relative)
def test_what_runs_on_a_mac_imports_only_the_standard_library_and_ansible(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported.add(node.module)
    foreign = {
        name
        for name in imported
        if name.partition(".")[0] not in sys.stdlib_module_names
        and not name.startswith(
            (
                "instance_runner",
                "queue_guard",
                "ansible.module_utils",
                "ansible_collections.lmfleet.mac.plugins.module_utils",
            )
        )
    }
    # Apple's Python is older than these parts of the standard library.
    assert foreign | imported & {"tomllib", "wsgiref.types", "asyncio.taskgroups"} == set()


def test_collection_is_found_through_relative_links():
    links = [path for path in FARM.iterdir() if path.is_symlink()]
    assert {"galaxy.yml", "meta", "playbooks", "plugins", "roles"} <= {link.name for link in links}
    assert [link.name for link in links if link.resolve() != REPOSITORY / link.name] == []
    assert [link.name for link in links if link.readlink().is_absolute()] == []


def test_nothing_is_exempt_from_a_check():
    names = (".ansible-lint-ignore", ".flake8", ".pylintrc", "ignore.txt")
    exempting = [
        relative(path)
        for path in repository_files()
        if path.name in names or re.fullmatch(r"ignore-[\d.]+\.txt", path.name)
    ]
    assert exempting == []
    lint = yaml.safe_load((REPOSITORY / ".ansible-lint").read_text())
    assert lint["profile"] == "production"
    assert not {"skip_list", "warn_list", "mock_modules", "mock_roles"} & set(lint)
    assert {path.rstrip("/") for path in lint["exclude_paths"]} <= {".ansible", ".cache", ".venv", "build"}


def test_no_file_names_a_package_registry():
    named = {
        relative(path): host
        for path in repository_files()
        for host in REGISTRY_HOSTS
        if host.encode() in path.read_bytes()
    }
    assert named == {}


def test_every_file_says_its_license():
    kinds = {".py", ".sh"}
    missing = [
        relative(path)
        for path in repository_files()
        if path.suffix in kinds and "SPDX-License-Identifier: GPL-3.0-or-later" not in path.read_text()[:600]
    ]
    assert missing == []


@pytest.mark.parametrize("lock", LOCKS, ids=relative)
def test_lock_pins_everything_by_version_and_hash(lock):
    text = re.sub(r"\\\n\s*", "", lock.read_text())
    requirements = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    assert requirements
    assert [
        line for line in requirements if not re.match(r"[A-Za-z0-9._-]+(\[[a-z,-]+\])?==\S+.* --hash=sha256:", line)
    ] == []
    assert "://" not in text


def test_version_is_the_same_everywhere():
    galaxy = yaml.safe_load((REPOSITORY / "galaxy.yml").read_text())["version"]
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    releases = yaml.safe_load((REPOSITORY / "changelogs" / "changelog.yaml").read_text())["releases"]
    newest = max(releases, key=lambda release: [int(part) for part in release.split(".")])
    assert {galaxy, project} == {newest}
