# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a Mac can tell of the memory that models take: files, measured values, LM Studio's own estimates. Reads only."""

from __future__ import annotations

import json
import os
import re
import time

from . import _command, _files, _lms, _model_size
from ._processes import alive

MEASURED_FILE = "memory.json"
_LMS_TIMEOUT = 30  # seconds for one call
_ALL_TIMEOUT = 90  # seconds for all calls on a Mac
# These are flags of `lms load`. The others are taken from the tuning file that is in place.
_FLAGS = {"context_length": "--context-length", "parallel": "--parallel", "gpu": "--gpu"}
_ESTIMATE = re.compile(r"Estimated (GPU|Total) Memory:\s*([0-9]+(?:\.[0-9]+)?)\s*(GB|GiB|MB|MiB)\b")


def gather(wanted, user, wired_limit_mb):
    """Return what the Mac tells.

    C(wanted): root, files (paths below its models folder), settings (names of those that count), and instances, each
    with name and models with identifier, path and load. C(user): name, uid, gid and home of who runs the instances.
    """
    root = wanted["root"].replace("~", user["home"], 1)
    declarations = {one["name"]: _declaration(root, one["name"]) for one in wanted["instances"]}
    settled = {one["name"]: _is_settled(root, one, declarations[one["name"]], wanted) for one in wanted["instances"]}
    measured, problem = _measured(os.path.join(root, MEASURED_FILE))
    files = {path: _model_size.describe(os.path.join(root, "models", path)) for path in wanted["files"]}
    return {
        "wired_limit_mb": wired_limit_mb,
        "files": {path: found for path, found in files.items() if found},
        "measured": measured,
        "settled": all(settled.values()),
        # Asking LM Studio takes seconds, so it is asked only where something is to change.
        "estimates": {} if all(settled.values()) else _estimates(root, wanted, declarations, user),
        "problem": problem,
    }


def _declaration(root, instance):
    """Return the declaration that the instance runs by, {} when there is none."""
    found = _files.read_json(os.path.join(root, "instances", instance, "instance.json"))
    return found if isinstance(found, dict) else {}


def _models(declaration):
    models = declaration.get("models")
    return [model for model in models if isinstance(model, dict)] if isinstance(models, list) else []


def _counting(load, names):
    return {name: load[name] for name in names if name in load} if isinstance(load, dict) else None


def _is_settled(root, wanted, declaration, everything):
    """Return whether the instance has this very list of models already, and none of them failed to load."""
    names = everything["settings"]
    there = [
        (model.get("identifier"), model.get("path"), _counting(model.get("load"), names))
        for model in _models(declaration)
    ]
    here = [(model["identifier"], model["path"], _counting(model["load"], names)) for model in wanted["models"]]
    status = _files.read_json(os.path.join(root, "instances", wanted["name"], "status.json"))
    states = [model.get("status") for model in _models(status if isinstance(status, dict) else {})]
    return there == here and "failed" not in states


def _measured(path):
    """Return the usable records of the file, and a word on what is wrong with the others."""
    content = _files.read_bytes(path)
    if content is None:
        return [], None
    try:
        records = json.loads(content)["measured"]
        usable = [record for record in records if _is_record(record)]
    except (ValueError, KeyError, TypeError):
        return [], f'{path} is not used: it is not JSON of the form {{"measured": [...]}}'
    if len(usable) < len(records):
        return usable, f"{path}: {len(records) - len(usable)} of {len(records)} records lack sha256, load or total_mb"
    return usable, None


def _is_record(record):
    return (
        isinstance(record, dict)
        and isinstance(record.get("sha256"), str)
        and isinstance(record.get("load"), dict)
        and all(_is_size(record[key]) for key in ("total_mb", "gpu_mb") if key in record)
        and "total_mb" in record
    )


def _is_size(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _estimates(root, wanted, declarations, user):
    """Return what LM Studio estimates, {"instance/identifier": {gpu_mb, total_mb}}, for what it can be asked about."""
    deadline = time.monotonic() + _ALL_TIMEOUT
    found = {}
    for instance in wanted["instances"]:
        declaration = declarations[instance["name"]]
        home = os.path.join(root, "instances", instance["name"])
        askable = [model for model in instance["models"] if _can_be_asked(model, declaration, wanted["settings"])]
        if not askable or not isinstance(declaration.get("lms"), str) or not _runs(home):
            continue
        ask = _Asking(declaration["lms"], home, user, deadline)
        keys = ask.keys()
        for model in askable:
            answer = ask.estimate(keys.get(model["path"]), model["load"])
            if answer:
                found[f"{instance['name']}/{model['identifier']}"] = answer
    return found


def _can_be_asked(model, declaration, names):
    """Return whether all that the flags of lms cannot say is the same in the tuning file that is in place."""
    others = [name for name in names if name not in _FLAGS]
    before = [entry for entry in _models(declaration) if entry.get("path") == model["path"]]
    in_place = _counting(before[0].get("load"), others) if before else {}
    return in_place == _counting(model["load"], others)


def _runs(home):
    status = _files.read_json(os.path.join(home, "status.json"))
    return isinstance(status, dict) and alive(status.get("daemon_pid"))


class _Asking:
    """Calls of lms for one instance, as the user who runs it, until a deadline."""

    def __init__(self, lms, home, user, deadline):
        self._lms, self._home, self._deadline = lms, home, deadline
        self._owner = (user["uid"], user["gid"]) if os.geteuid() == 0 and user["uid"] != 0 else None

    def _call(self, arguments):
        timeout = min(_LMS_TIMEOUT, self._deadline - time.monotonic())
        if timeout <= 0:
            return ""
        return _command.run(
            [self._lms, *arguments], timeout, env=_lms.environment(self._home), cwd=self._home, owner=self._owner
        ).out

    def keys(self):
        """Return the exact key of each model on this Mac by its path: lms matches keys loosely."""
        try:
            models = json.loads(self._call(["ls", "--json"]))
        except ValueError:
            return {}
        models = models if isinstance(models, list) else []
        return {
            model.get("path"): model.get("modelKey")
            for model in models
            if isinstance(model, dict) and model.get("deviceIdentifier") is None
        }

    def estimate(self, key, load):
        # What begins with "-" would be an option.
        return parse_estimate(self._call(estimate_arguments(key, load))) if key and key[0] != "-" else None


def estimate_arguments(key, load):
    """Return the arguments of `lms` that have a load estimated and nothing loaded."""
    arguments = ["load", key, "--estimate-only", "-y"]
    for name, flag in _FLAGS.items():
        if name in load:
            arguments += [flag, str(load[name])]
    return arguments


def parse_estimate(text):
    """Return {"gpu_mb", "total_mb"} of what lms prints, None when it does not tell both."""
    sizes = {}
    for kind, size, unit in _ESTIMATE.findall(text):
        sizes[kind] = round(float(size) * (1024 if unit.startswith("G") else 1))
    return {"gpu_mb": sizes["GPU"], "total_mb": sizes["Total"]} if len(sizes) == 2 else None
