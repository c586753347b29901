# SPDX-License-Identifier: GPL-3.0-or-later
"""What an instance shall be: the content of instance.json."""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

from .errors import DeclarationError


class Model(NamedTuple):
    """A model to keep loaded.

    None for context_length, parallel or gpu: not passed to `lms load`. `load` are settings as they must be read back.
    """

    identifier: str
    path: str
    type: str
    context_length: int | None
    parallel: int | None
    gpu: str | None
    fingerprint: str
    load: dict[str, Any]


class Declaration(NamedTuple):
    """instance.json; times in seconds. `generation` is the sha256 of its bytes, `api_token` "" for none.

    Without a `status_port` the status is not published.
    """

    name: str
    address: str
    port: int
    llmster: str
    lms: str
    start_timeout: float
    load_timeout: float
    stop_timeout: float
    poll_interval: float
    purge: bool
    log_max_bytes: int
    log_keep: int
    status_address: str
    status_port: int | None
    runtimes: dict[str, str]
    api_token: str
    models: tuple[Model, ...]
    generation: str

    def needs_new_start(self, other: Declaration) -> bool:
        """Tell whether anything differs that a running daemon cannot take up."""
        return any(getattr(self, name) != getattr(other, name) for name in NEEDS_NEW_START)


#: Everything else is applied to the running instance. The module lmstudio_instances knows the same names.
NEEDS_NEW_START = ("name", "address", "port", "llmster", "lms")

_TEXT, _NUMBER, _COUNT = (str,), (int, float), (int,)
_FIELDS = {
    "name": _TEXT,
    "address": _TEXT,
    "port": _COUNT,
    "llmster": _TEXT,
    "lms": _TEXT,
    "start_timeout": _NUMBER,
    "load_timeout": _NUMBER,
    "stop_timeout": _NUMBER,
    "poll_interval": _NUMBER,
}
_MODEL_FIELDS = {"identifier": _TEXT, "path": _TEXT, "type": _TEXT, "fingerprint": _TEXT}
_MODEL_OPTIONS = {"context_length": _COUNT, "parallel": _COUNT, "gpu": (str, int, float)}

_LOG_MAX_BYTES, _LOG_KEEP = 20 * 1024 * 1024, 5


def parse_declaration(content: bytes) -> Declaration:
    """Return the Declaration in the bytes of an instance.json. Raises DeclarationError."""
    try:
        data = json.loads(content)
    except ValueError as error:
        raise DeclarationError(f"not JSON: {error}") from None
    if not isinstance(data, dict):
        raise DeclarationError("not a JSON object")
    values = {name: _checked(data, name, kinds, "") for name, kinds in _FIELDS.items()}
    if not 1 <= values["port"] <= 65535:
        raise DeclarationError(f"port {values['port']} is not between 1 and 65535")
    for name, kinds in _FIELDS.items():
        if kinds is _NUMBER and values[name] <= 0:
            raise DeclarationError(f"{name} must be more than 0 seconds")
    values.update(_options(data))
    entries = data.get("models")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DeclarationError("models must be a list of objects")
    models = tuple(_parse_model(entry) for entry in entries)
    identifiers = [model.identifier for model in models]
    for identifier in identifiers:
        if identifiers.count(identifier) > 1:
            raise DeclarationError(f"identifier {identifier} is declared twice")
    return Declaration(models=models, generation=hashlib.sha256(content).hexdigest(), **values)


def _options(data: dict[str, Any]) -> dict[str, Any]:
    """Return what a declaration may leave out: a template of the user's own may be older."""
    values = {"purge": data.get("purge", False), "runtimes": data.get("runtimes") or {}}
    if not isinstance(values["purge"], bool):
        raise DeclarationError(f"purge must be true or false, not {values['purge']!r}")
    runtimes = values["runtimes"]
    if not isinstance(runtimes, dict) or not all(isinstance(version, str) for version in runtimes.values()):
        raise DeclarationError("runtimes must be an object of name and version, both text")
    if any(name.startswith("-") for name in runtimes):
        raise DeclarationError("runtimes: a name must not begin with '-': lms would take it for an option")
    values["api_token"] = data.get("api_token") or ""
    if not isinstance(values["api_token"], str):
        raise DeclarationError("api_token must be text")
    for name, default, least in (("log_max_bytes", _LOG_MAX_BYTES, 1), ("log_keep", _LOG_KEEP, 0)):
        values[name] = _checked({name: default, **data}, name, _COUNT, "")
        if values[name] < least:
            raise DeclarationError(f"{name} must be {least} or more")
    port = values["status_port"] = data.get("status_port")
    if port is not None and (isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535):
        raise DeclarationError(f"status_port must be a number from 1 to 65535, not {port!r}")
    values["status_address"] = _checked({"status_address": data.get("address"), **data}, "status_address", _TEXT, "")
    return values


def _parse_model(entry: dict[str, Any]) -> Model:
    where = f"model {entry.get('identifier')}: "
    values = {name: _checked(entry, name, kinds, where) for name, kinds in _MODEL_FIELDS.items()}
    for name, kinds in _MODEL_OPTIONS.items():
        values[name] = None if entry.get(name) is None else _checked(entry, name, kinds, where)
    if values["gpu"] is not None:
        values["gpu"] = str(values["gpu"])
    values["load"] = entry.get("load") or {}
    if not isinstance(values["load"], dict):
        raise DeclarationError(f"{where}load must be an object")
    return Model(**values)


def _checked(data: dict[str, Any], name: str, kinds: tuple[type, ...], where: str) -> Any:
    value = data.get(name)
    if not isinstance(value, kinds) or isinstance(value, bool) or value == "":
        raise DeclarationError(f"{where}{name} is missing or of the wrong type: {value!r}")
    if str(value).startswith("-") and str in kinds:
        raise DeclarationError(f"{where}{name} must not begin with '-': lms would take {value!r} for an option")
    return value
