# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The schema of an inventory: which variables exist, and whether a value has the declared shape."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.lmfleet.mac.plugins.modules import fleet_plan as fleet_plan_documentation

SHARED_PREFIX = "lmfleet_"
#: Their values are in no message. Those of the roles say no_log in their specification.
SECRETS = {"lmfleet_api_tokens"}


@functools.cache
def shared_options() -> dict[str, dict[str, Any]]:
    """Return the documented C(lmfleet_*) variables: name to option, as in the DOCUMENTATION of fleet_plan."""
    return yaml.safe_load(fleet_plan_documentation.DOCUMENTATION)["options"]


def role_options(roles: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Return for each role below C(roles) its variables, with the options of its argument specification."""
    known = {}
    for specification in sorted(roles.glob("*/meta/argument_specs.yml")):
        entry_points = yaml.safe_load(specification.read_text(encoding="utf-8"))["argument_specs"]
        known[specification.parts[-3]] = {
            name: _as_documented(option) for entry in entry_points.values() for name, option in entry["options"].items()
        }
    return known


def _as_documented(option: Mapping[str, Any]) -> dict[str, Any]:
    """Return an option of an argument specification in the form that a module's documentation has."""
    suboptions = {name: _as_documented(suboption) for name, suboption in option.get("options", {}).items()}
    return {**option, "suboptions": suboptions}


def filled_variables(playbooks: Path) -> set[str]:
    """Return the role variables that the playbooks fill from the plan.

    An inventory that sets one would be ignored without a word.
    """
    return set(yaml.safe_load((playbooks / "vars" / "fleet.yml").read_text(encoding="utf-8")))


def role_defaults(roles: Path, role: str) -> dict[str, Any]:
    """Return the defaults of a role as they are written, templates not evaluated."""
    return yaml.safe_load((roles / role / "defaults" / "main.yml").read_text(encoding="utf-8"))


def first_line(option: Mapping[str, Any]) -> str:
    """Return the first paragraph of an option's description."""
    description = option["description"]
    return description if isinstance(description, str) else description[0]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return C( Did you mean X?) or an empty string."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""


def name_problems(names: Iterable[str], known_roles: Mapping[str, Mapping], filled: set[str]) -> list[tuple[str, str]]:
    """Return (variable, message) for each name that has one of our prefixes and that an inventory cannot set."""
    known = set(shared_options()).union(*known_roles.values())
    prefixes = (SHARED_PREFIX, *(f"{role}_" for role in known_roles))
    problems = []
    for name in sorted(names):
        if not name.startswith(prefixes):
            continue
        if name in filled:
            problems.append(
                (
                    name,
                    "is worked out from the lmfleet_ variables and cannot be set. "
                    "See: ansible-doc lmfleet.mac.fleet_plan",
                )
            )
        elif name not in known:
            problems.append((name, f"no such variable.{did_you_mean(name, known)}"))
    return problems


def validate(value: Any, option: Mapping[str, Any], where: str) -> tuple[Any, list[tuple[str, str]]]:
    """Check one value against a documented option.

    Returns the value with types converted and defaults filled in, and a list of (place, message).
    Elements of a list are checked one by one, so that a message can say which one it is about.
    """
    suboptions = option.get("suboptions")
    if not suboptions:
        return _validate_leaf(value, option, where)
    if option["type"] == "list":
        if not isinstance(value, list):
            return [], [(where, f"must be a list, not {_kind(value)}.")]
        results = [
            validate(element, {**option, "type": "dict"}, f"{where}[{index}]{_label(element)}")
            for index, element in enumerate(value)
        ]
        return [result[0] for result in results], [problem for result in results for problem in result[1]]
    if not isinstance(value, Mapping):
        return {}, [(where, f"must be a mapping, not {_kind(value)}.")]
    if set(suboptions) == {"NAME"}:
        named = {str(name): validate(element, suboptions["NAME"], f"{where}.{name}") for name, element in value.items()}
        return {name: result[0] for name, result in named.items()}, [
            problem for result in named.values() for problem in result[1]
        ]
    return _validate_mapping(value, suboptions, where)


def _validate_mapping(value: Mapping, suboptions: Mapping, where: str) -> tuple[dict, list[tuple[str, str]]]:
    checked, problems = {}, []
    for key in value:
        if key not in suboptions:
            problems.append((where, f"has no setting {key!r}.{did_you_mean(str(key), suboptions)}"))
    for key, suboption in suboptions.items():
        given = value.get(key)
        if given is None:
            if suboption.get("required"):
                problems.append((where, f"{key} is missing. It is: {first_line(suboption)}"))
            given = suboption.get("default")
        if given is None:
            checked[key] = [] if suboption.get("type") == "list" else None
            continue
        checked[key], found = validate(given, suboption, f"{where}.{key}")
        problems.extend(found)
    return checked, problems


def _validate_leaf(value: Any, option: Mapping[str, Any], where: str) -> tuple[Any, list[tuple[str, str]]]:
    if isinstance(value, bool) and option.get("type") == "int":
        return option.get("default"), [(where, f"must be a whole number, not {value}.")]
    specification = {key: option[key] for key in ("type", "elements", "choices") if key in option}
    result = ArgumentSpecValidator({"value": specification}).validate({"value": value})
    if result.error_messages:
        wanted = (
            f"one of {', '.join(map(str, option['choices']))}"
            if "choices" in option
            else f"of type {option.get('type', 'str')}"
        )
        secret = option.get("no_log") or where in SECRETS
        return option.get("default"), [(where, f"must be {wanted}, not {_kind(value) if secret else repr(value)}.")]
    return result.validated_parameters["value"], []


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _label(element: Any) -> str:
    name = element.get("name") if isinstance(element, Mapping) else None
    return f" ({name})" if isinstance(name, str) else ""
