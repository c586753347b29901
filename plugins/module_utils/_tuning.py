# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Per-model load defaults: merging the fields we manage into a file that LM Studio and its users write as well.

Pure. A file is {"preset": …, "operation": {"fields": [{"key", "value"}]}, "load": {"fields": […]}, …}.
"""

from __future__ import annotations

import copy
import json


class TuningError(Exception):
    """A tuning text that cannot be used; the text says where and why."""


def parse_tuning(text: str, where: str) -> dict:
    """Return the parsed JSON of a rendered template. Raises TuningError that begins with `where` and has the line."""
    try:
        content = json.loads(text)
    except ValueError as error:
        position = f"line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else "text"
        raise TuningError(f"{where}: {position}: not valid JSON ({getattr(error, 'msg', error)})") from None
    if not isinstance(content, dict):
        raise TuningError(f"{where}: the top level must be an object")
    for section in _sections(content):
        for field in content[section]["fields"]:
            if not isinstance(field, dict) or not isinstance(field.get("key"), str) or "value" not in field:
                raise TuningError(f"{where}: {section}.fields: each must have a key and a value, found {field!r}")
    return content


def managed_keys(content: dict) -> dict[str, list[str]]:
    """Return the keys that `content` sets, by section, so that a later run knows which ones are ours to remove."""
    keys = {section: sorted(field["key"] for field in content[section]["fields"]) for section in _sections(content)}
    return {section: names for section, names in keys.items() if names}


def merge(found: dict | None, wanted: dict | None, managed_before: dict[str, list[str]]) -> dict | None:
    """Return what the file shall hold, None when nothing worth keeping is left.

    `found` is the file as it is (None: absent or broken), `wanted` what the template says (None: the model is no
    longer served), `managed_before` the keys an earlier run set. Fields of `wanted` replace those of the same key, keys
    managed before and no longer wanted go, everything else stays as it is, in its order. What `wanted` says outside of
    the fields (such as "preset") only fills what is absent.
    """
    result = copy.deepcopy(found) if isinstance(found, dict) else {}
    wanted = wanted or {}
    for name, value in wanted.items():
        if not _is_section(value):
            result.setdefault(name, value)
    for section in [*_sections(wanted), *(name for name in managed_before if name not in _sections(wanted))]:
        ours = {field["key"]: field["value"] for field in wanted.get(section, {}).get("fields", [])}
        gone = set(managed_before.get(section, [])) - set(ours)
        result[section] = _merge_section(result.get(section), ours, gone)
    return result if wanted or _says_anything(result) else None


def _merge_section(found: object, ours: dict, gone: set[str]) -> dict:
    section = dict(found) if isinstance(found, dict) else {}
    fields = []
    left = dict(ours)
    for field in section.get("fields") if isinstance(section.get("fields"), list) else []:
        key = field.get("key") if isinstance(field, dict) else None
        if key in left:
            fields.append({**field, "value": left.pop(key)})
        elif key not in gone and key not in ours:
            fields.append(field)
    fields += [{"key": key, "value": value} for key, value in left.items()]
    section["fields"] = fields
    return section


def _says_anything(content: dict) -> bool:
    return any(value["fields"] if _is_section(value) else value for value in content.values())


def _sections(content: dict) -> list[str]:
    return [name for name, value in content.items() if _is_section(value)]


def _is_section(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("fields"), list)
