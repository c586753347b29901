# SPDX-License-Identifier: GPL-3.0-or-later
"""Models of the catalogue: what the knob ``catalog`` lists, fetched from the addresses that it gives.

``{"owner/name": [{"quantization", "format", "folder": "publisher/repository", "files": {name: url}}]}``, the format
gguf or safetensors; of the options that fit, the first is the one that is recommended for this Mac.
"""

from __future__ import annotations

import os
import shutil
import threading

from llmster_standin import catalog, home, knobs


class RepositoryError(Exception):
    """There is no such model, or none that fits."""


def _listed():
    listed = knobs.get("catalog")
    return listed if isinstance(listed, dict) else {}


def staff_picks(term):
    """Return the names, owner/name, that have the letters of the term in this order."""
    return [name for name in _listed() if _has_in_order(name, term.lower())]


def _has_in_order(name, letters):
    rest = iter(name)
    return all(letter in rest for letter in letters)


def chosen(parameter):
    """Return the option that is downloaded. Raises RepositoryError."""
    name = "{}/{}".format(parameter.get("owner"), parameter.get("name"))
    if name not in _listed():
        raise RepositoryError(f"Artifact {name} not found.")
    formats = parameter.get("formats") or ["gguf", "safetensors"]
    options = [option for option in _listed()[name] if option["format"] in formats]
    wanted = parameter.get("quantization")
    fitting = [option for option in options if wanted is None or option["quantization"].lower() == wanted.lower()]
    if fitting:
        return fitting[0]
    if wanted is None:
        raise RepositoryError(f"No compatible download options available for {name}.")
    known = ", ".join(option["quantization"] for option in options)
    raise RepositoryError(
        f'Cannot find a concrete model with quantization "{wanted}" in this plan. Available quantizations: {known}'
    )


class Download:
    """A download in a thread of its own. `error` tells why it failed, `fetched` which files it has fetched."""

    def __init__(self, owner, name, option, log):
        self.error = None
        self.fetched = []
        self._manifest = catalog.artifact_file(owner, name)
        self._option = option
        self._log = log
        self._now = None
        self._ended = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def wait(self, seconds):
        """Return whether it has ended, after waiting so long for it."""
        return self._ended.wait(seconds)

    def state(self):
        """Return which file is fetched, and how many bytes of it are there."""
        part = self._now
        return {"file": os.path.basename(part or ""), "bytes": os.path.getsize(part) if _is_file(part) else 0}

    def _run(self):
        try:
            self._fetch_all()
        except (OSError, ValueError) as error:
            self.error = str(error)
            self._log(f"download failed: {error}")
        finally:
            self._ended.set()

    def _fetch_all(self):
        import urllib.request  # takes a while, and hardly any daemon needs it

        folder = os.path.join(home.models_folder(), *self._option["folder"].split("/"))
        os.makedirs(folder, exist_ok=True)
        for name, address in self._option["files"].items():
            target = os.path.join(folder, name)
            if os.path.exists(target):
                continue
            self._now = os.path.join(folder, f"downloading_{name}.part")
            with urllib.request.urlopen(address, timeout=60) as answer, open(self._now, "wb") as part:
                shutil.copyfileobj(answer, part)
                announced = answer.headers.get("Content-Length")
                if announced and part.tell() != int(announced):
                    raise ConnectionError(f"the connection ended after {part.tell()} of {announced} bytes")
            os.replace(self._now, target)
            self.fetched.append(name)
        weights = [name for name in sorted(self._option["files"]) if name.endswith(".gguf") and name[:6] != "mmproj"]
        place = "/".join([self._option["folder"], *weights[:1]])
        home.write_json(self._manifest, {"place": place, "quantization": self._option["quantization"]})


def _is_file(path):
    return path is not None and os.path.isfile(path)
