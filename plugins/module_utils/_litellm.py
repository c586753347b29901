# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A LiteLLM gateway as it stands in its folder: versions, virtual environments, environment file, fingerprint. Pure."""

from __future__ import annotations

import hashlib
import re
import shlex
import urllib.parse
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

#: Releases with code of an attacker in them.
COMPROMISED = ("1.82.7", "1.82.8", "1.107.0")
#: Before it, requests could get around authentication.
OLDEST = (1, 84, 0)
SAFE = "1.106.2"

#: Pythons that the lock has been made for.
PYTHONS = ((3, 11), (3, 12), (3, 13), (3, 14))

MASTER_KEY_VARIABLE = "LITELLM_MASTER_KEY"
#: What LiteLLM encrypts with in its database. Without it that is the master key, and with another one all is lost.
DATABASE_KEY_VARIABLE = "LITELLM_SALT_KEY"
DATABASE_VARIABLE = "DATABASE_URL"
REDIS_VARIABLE = "LMFLEET_REDIS_URL"
#: Written into the environment file, so that its hash says nothing about the secrets in it.
SALT_VARIABLE = "LMFLEET_SALT"
MARKER = ".lmfleet-complete"
#: Touched in an installed folder when a release with it begins to serve, and when it hands over to another.
SERVED = ".lmfleet-served"

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SOUNDS_SECRET = r"key|token|passw|secret|credential|auth|hook|salt|private|cert|dsn|url|environment"
#: A key that sounds like a secret. What is read from the environment at start is none.
_SECRET_KEY = re.compile(
    rf"""["']?[\w.-]*(?:{_SOUNDS_SECRET})[\w.-]*["']?[ \t]*:"""
    r"""(?![ \t]*["']?os\.environ/\w+["']?[ \t]*(?:[,}\]]|$))""",
    re.I,
)
#: What gives itself away under any key: a password and a long path in an address, and what clients send.
_SECRET_VALUES = (
    (re.compile(r"://[^/\s@]+@"), "://(hidden)@"),
    (re.compile(r"""(://[^/\s"'?]+[/?])[^\s"',}]{20,}"""), r"\1(hidden)"),
    (re.compile(r"\b(Bearer |Basic |sk-)[\w.+/=-]+"), r"\1(hidden)"),
)


def release_problem(version: str) -> str:
    """Return why this version of LiteLLM must not run, or ""."""
    if version in COMPROMISED:
        return f"LiteLLM {version} was published by an attacker and must never be installed. Use {SAFE}."
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        return f"{version!r} is not an exact version of LiteLLM. Use {SAFE}."
    if tuple(int(part) for part in version.split(".")) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return f"LiteLLM {version} has known security holes (fixed in {oldest}). Use {SAFE}."
    return ""


def image_problem(image: str) -> str:
    """Return why a container of this image must not run, as far as its tag tells, or ""."""
    tag = image.partition("@")[0].rpartition("/")[2].partition(":")[2]
    named = re.search(r"\d+\.\d+\.\d+", tag)
    return release_problem(named.group()) if named else ""


def version_problem(version: str, requirements: str) -> str:
    """Return why this version of LiteLLM must not be installed with this lock, or ""."""
    problem = release_problem(version)
    if problem:
        return problem
    locked = re.search(r"^litellm(?:\[[^\]]*\])?==(\S+)", requirements, re.M)
    if not locked:
        return "The lock does not pin litellm. Make one with tools/lock_gateway.sh."
    if locked.group(1) != version:
        return (
            f"The lock pins LiteLLM {locked.group(1)}, not {version}. Give litellm_requirements a lock for "
            "that version (tools/lock_gateway.sh makes one)."
        )
    if "--hash=sha256:" not in requirements:
        return "The lock has no hashes. Make one with tools/lock_gateway.sh."
    return ""


def database_problem(url: str, requirements: str, *environments: Mapping[str, object]) -> str:
    """Return why LiteLLM could not use the database, or "". Says nothing of the URL, which has a password in it."""
    try:
        parts = urllib.parse.urlsplit(url)
        whole = parts.scheme in ("postgresql", "postgres") and parts.hostname and parts.port != 0 and parts.path[1:]
    except ValueError:
        whole = False
    if not whole:
        return (
            "The address of the database is not one that LiteLLM takes. Write it as "
            "postgresql://user:password@host:5432/name, with special characters of the password percent-encoded "
            "(litellm_database_url)."
        )
    if not re.search(r"^prisma==", requirements, re.M):
        return (
            "The lock does not pin prisma, with which LiteLLM reaches a database. Set litellm_postgres_requirements "
            "to a lock that does (tools/lock_gateway.sh makes one)."
        )
    if any(DATABASE_VARIABLE in environment for environment in environments):
        return f"{DATABASE_VARIABLE} is in the environment; give the address as litellm_database_url only."
    return ""


def native_schema(text: str) -> str:
    """Return the schema for Prisma for the engine of this machine only; LiteLLM's own names five."""
    return re.sub(r"binaryTargets\s*=\s*\[[^\]]*\]", 'binaryTargets = ["native"]', text)


def python_problem(path: str, version: Sequence[int]) -> str:
    """Return why the interpreter at `path` cannot run the gateway, or ""; `version` is (major, minor)."""
    if tuple(version) in PYTHONS:
        return ""
    wanted = ", ".join(f"{major}.{minor}" for major, minor in PYTHONS)
    found = ".".join(map(str, version))
    return f"{path} is Python {found}, but the gateway needs one of {wanted}. Set litellm_python, or leave it empty."


def redis_problem(url: str) -> str:
    """Return what is wrong with the address of a Redis, or ""; "" is none at all. The text says no secret."""
    try:
        parts = urllib.parse.urlsplit(url)
        usable = parts.scheme in ("redis", "rediss") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    return "" if usable or not url else "is no address of a Redis: write redis://:<password>@<host>:6379/0"


def folder_name(kind: str, *parts: str) -> str:
    """Return the name of a virtual environment: another one for each content."""
    return kind + "-" + hashlib.sha256("\0".join(parts).encode("utf-8")).hexdigest()[:12]


def superfluous(served: Mapping[str, float], in_use: Collection[str]) -> list[str]:
    """Return the installed folders to remove: all but those `in_use` and, to go back to, the other that served last.

    `served` is the name of each to when it served, 0 for never.
    """
    others = sorted((name for name in served if name not in in_use), key=lambda name: served[name])
    former = [name for name in others[-1:] if served[name]]
    return sorted(set(others) - set(former))


class Environment(NamedTuple):
    """The environment file. `variables` are those without the salt."""

    variables: dict
    salt: str

    def render(self) -> str:
        """Return the text, for sh to read.

        Raises ValueError for a name that is none, or a value with a NUL or a line end.
        """
        lines = [f"{SALT_VARIABLE}={self.salt}"]
        for name in sorted(self.variables):
            value = str(self.variables[name])
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is not a name for an environment variable")
            if set("\0\n\r") & set(value):
                raise ValueError(f"the environment variable {name} has a line end or a NUL in its value")
            lines.append(f"{name}={shlex.quote(value)}")
        return "\n".join(lines) + "\n"


def salt_of(text: str | None) -> str:
    """Return the salt in the text of an environment file, or ""."""
    found = re.search(rf"^{SALT_VARIABLE}=([0-9a-f]{{32}})$", text or "", re.M)
    return found.group(1) if found else ""


def environment_diff(before: str | None, after: str) -> tuple[str | None, str]:
    """Return both texts of an environment file for a diff: the names, and which of them have a new value."""
    old, new = _lines_by_name(before or ""), _lines_by_name(after)
    shown = "".join(f"{name}=(hidden{', new' * (name in old and old[name] != new[name])})\n" for name in new)
    return (None if before is None else "".join(f"{name}=(hidden)\n" for name in old)), shown


def secret_values(variables: Mapping[str, object]) -> set[str]:
    """Return what must not appear in any message: values of variables that sound like it, passwords in addresses."""
    found = set()
    for name, value in variables.items():
        found.update(re.findall(r"://[^/\s@]*:([^/\s@]+)@", str(value)))
        if re.search(_SOUNDS_SECRET, name, re.I) and "://" not in str(value):
            found.add(str(value))
    # What is shorter is no secret, but a part of many words.
    return {value for value in found if len(value) >= 6}


def _lines_by_name(text: str) -> dict:
    pairs = (line.partition("=") for line in text.splitlines())
    return {name: value for name, __, value in pairs if name != SALT_VARIABLE}


def without_secrets(config: str | None) -> str | None:
    """Return the text of a config for a diff: what is or may be a secret is hidden."""
    if config is None:
        return None
    return "".join(line + "\n" for line in shown_lines(config) if line is not None)


def shown_lines(config: str) -> list[str | None]:
    """Return each line of a config as it may be shown, None for one in the middle of a hidden value.

    All that it takes of YAML, which not every Python can read: a value stands deeper than its key, or is a list.
    """
    shown: list[str | None] = []
    hidden_below = list_at = 1000  # a value is hidden that stands deeper, or is a list at this very indent
    for line in config.splitlines():
        text = line.lstrip(" ")
        indent = len(line) - len(text)
        if indent > hidden_below or (not text and hidden_below < 1000) or (indent == list_at and text.startswith("-")):
            shown.append(None)
            continue
        hidden_below = list_at = 1000
        secret, seen = _SECRET_KEY.search(line), line
        if secret:
            seen = line[: secret.end()] + " (hidden)"
            if not text.startswith("#"):
                first_key = re.match(r" *(?:- +)*", line).end()
                in_block = secret.start() == first_key
                hidden_below, list_at = (first_key, first_key) if in_block else (indent, 1000)
        elif "-----BEGIN " in line:
            seen, hidden_below = " " * indent + "(hidden)", indent - 1
        for pattern, instead in _SECRET_VALUES:
            seen = pattern.sub(instead, seen)
        shown.append(seen)
    return shown


def quoted_line(number: int, config: str) -> str:
    """Return the number of a line of a config with its text, for a message."""
    lines = shown_lines(config)
    text = lines[number - 1] if 0 < number <= len(lines) else ""
    return f"line {number}: {(text or '(hidden)').strip()}"


def where(key: str, config: str) -> str:
    """Return a key of a config with the line it stands in, for a message."""
    for number, line in enumerate(config.splitlines(), 1):
        if re.search(rf"(?<![\w-]){re.escape(key)}(?![\w-])", line) and not line.lstrip().startswith("#"):
            return f"{key} ({quoted_line(number, config)})"
    return key


def lines_named(reason: str, config: str) -> str:
    """Return what a reason has in quotes, or else the sections it speaks of, with their lines; "" for none."""
    sections = [section for section in re.findall(r"^(\w+):", config, re.M) if re.search(rf"\b{section}\b", reason)]
    reason = re.sub(r'File "[^"]*"', "", reason)
    for names in (re.findall(r"""['"`]([\w.-]+)['"`]""", reason), sections):
        places = [where(name, config) for name in dict.fromkeys(names)]
        found = [place for place in places if place.endswith(")")]
        if found:
            return ", ".join(found)
    return ""


def fingerprint(runner: str) -> str:
    """Return what tells the text of a runner from others, as the runner itself says it in its status."""
    return hashlib.sha256(runner.encode("utf-8")).hexdigest()[:32]
