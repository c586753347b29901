#!/usr/bin/python
# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module lmstudio_models."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lmstudio_models
short_description: Have model files in LM Studio's models folder
version_added: "0.1.0"
author: ["The lmfleet contributors (@lmfleet)"]
description:
  - Fetches the files of models that are missing or not what their sha256 says, all with one call per Mac.
  - A file gets its name only after its checksum was verified. Until then it is outside of the models folder, which LM
    Studio watches. A download that was cut off is continued, within a run and by the next run.
  - Answers of a server that may pass (500 and the like), broken and stalled connections are tried again a few times.
  - What was verified once is not read again as long as its size and time stay the same.
  - With O(found) a Mac that has all files is not asked again.
attributes:
  check_mode:
    description: Tells which files would be fetched, without fetching them or writing the index.
    support: full
  diff_mode:
    description: Shows path, size and sha256 of each file that is fetched.
    support: full
options:
  directory:
    description: The models folder.
    type: path
    required: true
  models:
    description:
      - The files, fetched in this order. A model of several files has an entry for each.
      - LM Studio lists a split model as soon as its first part is there, so let that come last.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the model, for messages.
        type: str
        required: true
      path:
        description: Place below the models folder, C(publisher/name/file).
        type: str
        required: true
      url:
        description:
          - Where the file comes from, as an http, https or file URL.
            Exactly one of this, O(models[].src), O(models[].local) and O(models[].catalog).
        type: str
      src:
        description: Absolute path of the file on this Mac; it is copied.
        type: path
      local:
        description:
          - Absolute path of the file on the controller. It is sent to the Mac, into O(partial), if the Mac lacks it.
            That takes a second call of the module, and the folder has to be writable for the user that Ansible logs
            in as.
        type: str
      catalog:
        description:
          - A model of LM Studio's catalogue, C(publisher/name), or C(name) for a recommended one; with C(@) and a
            quantisation where there are several. C(lms get) fetches it, and the file of it that is named like the last
            part of O(models[].path) is taken. Of a model without a C(.gguf) file, the one in MLX's format is fetched.
          - That needs O(lmstudio). A daemon with a home of its own, in O(partial), runs meanwhile and takes
            one of LM Studio's five control ports.
          - LM Studio must then know a model with exactly this key. What else it keeps of a model of the catalogue, such
            as settings for sampling, is not taken.
        type: str
      sha256:
        description: The sha256 of the file, 64 hex digits.
        type: str
        required: true
      size:
        description:
          - Size in bytes, where known. Without it the server is asked before a download; the catalogue cannot be asked.
        type: int
  lmstudio:
    description:
      - For O(models[].catalog), the home folder of an LM Studio that M(lmfleet.mac.lmstudio_install) has installed.
    type: path
  found:
    description:
      - What M(lmfleet.mac.mac_host_check) has just told in C(facts.lmstudio.models). Where it shows that there is
        nothing to fetch, the Mac is not asked again. It is not used with the options that want more than that look,
        which are O(index), O(partial), O(prune), O(read_all) and O(server).
    type: dict
  index:
    description: File that remembers what was verified. Default is C(models.json) beside the models folder.
    type: path
  partial:
    description:
      - Folder of unfinished downloads, on the same disk as the models folder. Default is C(partial) beside it.
    type: path
  read_all:
    description: Whether every file is read and its checksum compared, also where size and time are the same as before.
    type: bool
    default: false
  server:
    description:
      - Text of the program that serves the models folder to other Macs. It is put beside the models folder as
        C(model_server.py); what runs it is not the business of this module.
    type: str
  prune:
    description:
      - Instead of fetching, remove the files that are not among O(models). Only those that this module has fetched
        and that are unchanged since, and none of a model that is loaded on an instance.
      - In check mode, models that the instances were declared to load count as unloaded.
    type: dict
    suboptions:
      homes:
        description: Folder of the instances' homes. Each of them is asked what it has loaded.
        type: path
        required: true
      lms:
        description: Path of the C(lms) program.
        type: path
        required: true
  timeout:
    description: Seconds that one file, or one model of the catalogue, may take.
    type: int
    default: 3600
  progress_interval:
    description: Seconds between two lines that say how far a download is, V(0) for none.
    type: int
    default: 30
  lock_timeout:
    description: Seconds to wait for another run on the same Mac that is fetching models.
    type: int
    default: 120
"""

EXAMPLES = r"""
- name: Fetch two models
  lmfleet.mac.lmstudio_models:
    directory: /Users/admin/.lmfleet/models
    models:
      - name: smollm2
        path: lmfleet/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
        url: http://mirror.example/models/SmolLM2-135M-Instruct.Q4_1.gguf
        sha256: 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
      - name: own-model
        path: lmfleet/own-model/own-model.gguf
        local: /srv/models/own-model.gguf
        sha256: 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
      - name: nomic-embed
        path: nomic-ai/nomic-embed-text-v1.5/nomic-embed-text-v1.5.Q8_0.gguf
        src: /Users/Shared/nomic-embed-text-v1.5.Q8_0.gguf
        sha256: 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef

- name: Fetch a model of LM Studio's catalogue
  lmfleet.mac.lmstudio_models:
    directory: /Users/admin/.lmfleet/models
    lmstudio: /Users/admin/.lmfleet/llmster/0.0.25-1
    models:
      - name: qwen3-4b
        path: qwen/qwen3-4b/Qwen3-4B-Q4_K_M.gguf
        catalog: qwen/qwen3-4b@q4_k_m
        sha256: 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef

- name: Remove all files that were fetched by earlier runs
  lmfleet.mac.lmstudio_models:
    directory: /Users/admin/.lmfleet/models
    models: []
    prune:
      homes: /Users/admin/.lmfleet/instances
      lms: /Users/admin/.lmfleet/llmster/current/.lmstudio/bin/lms
"""

RETURN = r"""
models:
  description: The files in the order given.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Name of the model.
      type: str
      returned: always
    path:
      description: Place below the models folder.
      type: str
      returned: always
    state:
      description: V(present), V(fetched), or in check mode V(would_fetch).
      type: str
      returned: always
    bytes:
      description: Size of the file, null when it is not known yet.
      type: int
      returned: always
  sample: [{name: smollm2, path: lmfleet/smollm2/SmolLM2.gguf, state: present, bytes: 97500000}]
directory:
  description: The models folder, absolute.
  returned: success
  type: str
user:
  description: Name of the user that the module ran as.
  returned: success
  type: str
server:
  description: Path of the program that serves the folder, null when there is none.
  returned: success
  type: str
undeclared:
  description: Files that earlier runs have fetched and that are not among O(models).
  returned: success
  type: list
  elements: str
removed:
  description: Files that were removed, or would be in check mode.
  returned: success
  type: list
  elements: str
"""

import getpass
import os

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._download import DownloadError
from ..module_utils._files import (
    LockTimeoutError,
    atomic_write,
    canonical_json,
    exclusive,
    file_diff,
    make_directory,
    read_bytes,
)
from ..module_utils._loaded_models import LoadedError, loaded_models
from ..module_utils._model_files import ModelError, ModelFile, ModelFolder, checked_models
from ..module_utils._model_index import SERVER


def ensure(module: AnsibleModule) -> dict:
    """Return the results of the module; fetches what is missing unless in check mode.

    While files of the controller are not there yet, only `to_send` is returned, for the action plugin to send them.
    """
    params = module.params
    files = checked_models(params["models"])
    folder = ModelFolder(
        params["directory"], params["index"], params["partial"], params["read_all"], params["lmstudio"]
    )
    if module.check_mode:
        missing = folder.missing(files, remember=False)
        folder.require_space(missing)
    else:
        make_directory(folder.directory)
        make_directory(folder.partial)
        # The lock is in the folder of the unfinished downloads: LM Studio watches the other one.
        with exclusive(folder.partial, "lmstudio_models", params["lock_timeout"]):
            missing = folder.missing(files, remember=True)
            folder.require_space(missing)
            to_send = folder.to_send(missing)
            if to_send:
                return {"changed": False, "to_send": to_send}
            folder.fetch_all(missing, params["timeout"])
    models = [_result(folder, file, {other.path for other in missing}, module.check_mode) for file in files]
    diff = [_diff(folder, file) for file in missing]
    return {"changed": bool(missing), "models": models, "diff": diff, "removed": []}


def put_server(module: AnsibleModule, result: dict) -> None:
    """Have the program that serves the folder, and tell where it is."""
    path = os.path.join(os.path.dirname(os.path.abspath(module.params["directory"])), SERVER)
    before, after = read_bytes(path), module.params["server"]
    if after is None or (before is not None and before == after.encode()):
        result["server"] = path if before is not None else None
        return
    result.update(server=path, changed=True, diff=[*result["diff"], file_diff(path, before, after)])
    if not module.check_mode:
        atomic_write(path, after)


def prune(module: AnsibleModule) -> dict:
    """Return the results of the module; removes what is not declared unless in check mode."""
    params = module.params
    folder = ModelFolder(params["directory"], params["index"], params["partial"])
    declared = checked_models(params["models"])
    result = {"changed": False, "models": [], "diff": [], "removed": []}
    if not folder.undeclared(declared):
        return result
    with exclusive(folder.partial, "lmstudio_models", params["lock_timeout"]):
        candidates = folder.undeclared(declared)
        loaded = loaded_models(params["prune"]["homes"], params["prune"]["lms"], leaving=module.check_mode)
        places = {file.path for file in declared}
        for path in candidates:
            user = _used_by(path, loaded, places)
            if user:
                module.warn(f"{path} is not declared any more and is kept: {user}. Unload it, then run again.")
                continue
            result["removed"].append(path)
            full = os.path.join(params["directory"], *path.split("/"))
            before = canonical_json({"bytes": os.path.getsize(full)})
            result["diff"].append(file_diff(full, before, None))
            if not module.check_mode:
                folder.remove(path)
    result["changed"] = bool(result["removed"])
    return result


def _used_by(path: str, loaded: dict, declared: set) -> str:
    """Return who has the model of a file loaded, "" when nobody; `loaded` is {path of a model: instance}."""
    for model, instance in loaded.items():
        # LM Studio tells the first part of a split model, and the folder of an MLX model.
        if model in declared or any(place.startswith(model + "/") for place in declared):
            continue
        if path == model or path.startswith(model + "/") or os.path.dirname(path) == os.path.dirname(model):
            return f"its model is loaded on instance {instance}"
    return ""


def _result(folder: ModelFolder, file: ModelFile, missing: set, check_mode: bool) -> dict:
    absent = check_mode and file.path in missing
    state = "present" if file.path not in missing else "would_fetch" if check_mode else "fetched"
    size = file.size if absent else folder.size_on_disk(file)
    return {"name": file.name, "path": file.path, "state": state, "bytes": size}


def _diff(folder: ModelFolder, file: ModelFile) -> dict:
    before = folder.seen.get(file.path)
    after = {"sha256": file.sha256, "from": file.origin}
    return file_diff(
        folder.path_of(file), canonical_json({"sha256": before}) if before else None, canonical_json(after)
    )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "models": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "path": {"type": "str", "required": True},
                    "url": {"type": "str"},
                    "src": {"type": "path"},
                    "local": {"type": "str"},
                    "catalog": {"type": "str"},
                    "sha256": {"type": "str", "required": True},
                    "size": {"type": "int"},
                },
            },
            "lmstudio": {"type": "path"},
            "server": {"type": "str"},
            "prune": {
                "type": "dict",
                "options": {
                    "homes": {"type": "path", "required": True},
                    "lms": {"type": "path", "required": True},
                },
            },
            "found": {"type": "dict"},
            "index": {"type": "path"},
            "partial": {"type": "path"},
            "read_all": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 3600},
            "progress_interval": {"type": "int", "default": 30},
            "lock_timeout": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    try:
        result = prune(module) if module.params["prune"] else ensure(module)
        if "to_send" in result:
            module.exit_json(**result)
        put_server(module, result)
        folder = ModelFolder(module.params["directory"], module.params["index"], module.params["partial"])
        result["undeclared"] = folder.undeclared(checked_models(module.params["models"]))
        result.update(directory=os.path.abspath(module.params["directory"]), user=getpass.getuser())
    except (ModelError, DownloadError, LoadedError, LockTimeoutError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
