# SPDX-License-Identifier: GPL-3.0-or-later
"""lms load, unload, ps, ls."""

from __future__ import annotations

import json
import sys
import time

from llmster_standin import options
from llmster_standin.client import Client, CommandError, find_daemon
from llmster_standin.websocket import ClosedError

_LOAD_FLAGS = {
    "--gpu": options.gpu,
    "--context-length": options.whole(1),
    "--parallel": options.whole(1, 1023),
    "--ttl": options.whole(1),
    "--identifier": options.text,
    "--estimate-only": None,
    "--yes": None,
    "--speculative-draft-mtp": None,
    "--no-speculative-draft-mtp": None,
    "--speculative-draft-simple": None,
    "--no-speculative-draft-simple": None,
    "--speculative-draft-model": options.text,
    "--speculative-draft-max-tokens": options.whole(1),
    "--speculative-draft-min-tokens": options.whole(0),
    "--speculative-draft-min-continue-probability": options.share,
    "--exact": None,
    "--local": None,
    **options.REMOTE,
}
_DRAFT = "llm.load.llama.speculativeDecoding."
_DRAFT_KEYS = {
    "--speculative-draft-mtp": ("draftMtp", True),
    "--no-speculative-draft-mtp": ("draftMtp", False),
    "--speculative-draft-simple": ("draftSimple", True),
    "--no-speculative-draft-simple": ("draftSimple", False),
    "--speculative-draft-model": ("draftModel", None),
    "--speculative-draft-max-tokens": ("draftMaxTokens", None),
    "--speculative-draft-min-tokens": ("draftMinTokens", None),
    "--speculative-draft-min-continue-probability": ("draftMinContinueProbability", None),
}


def say(text):
    """Tell the user something: on stderr, stdout is for results."""
    sys.stderr.write(text + "\n")


def place_of(values):
    """Return the (host, port) to talk to: --host/--port, or the daemon that is found."""
    if "--host" in values or "--port" in values:
        return values.get("--host", "127.0.0.1"), values.get("--port", 1234)
    return find_daemon()


def _fuzzy_score(wanted, candidate):
    """Return how well the letters of ``wanted`` occur in order, runs counting more; None when they do not."""
    if wanted == candidate:
        return float("inf")
    score, run, place = 0, 0, 0
    for letter in candidate:
        if place < len(wanted) and letter == wanted[place]:
            place += 1
            run += 1 + run
        else:
            run = 0
        score += run
    return score if place == len(wanted) else None


def _matches(wanted, models):
    scored = [(model, _fuzzy_score(wanted.lower(), model["modelKey"].lower())) for model in models]
    found = [(model, score) for model, score in scored if score is not None]
    return [model for model, _score in sorted(found, key=lambda item: -item[1])]


def _pick(wanted, models, values):
    if "--exact" in values:
        exact = [model for model in models if model["path"] == wanted]
        if not exact:
            raise CommandError(f'No model found with path being exactly "{wanted}".')
        return exact[0]
    found = _matches(wanted, models) if wanted is not None else []
    if wanted is not None and not found and "--yes" in values:
        raise CommandError(f'No model found that matches path "{wanted}".')
    if wanted is None and "--yes" in values:
        raise CommandError("No model given.")
    if "--yes" in values:
        if len(found) > 1:
            say(f'{len(found)} models match "{wanted}". Loading the first one.')
        return found[0]
    if len(found) == 1:
        return found[0]
    if not sys.stdin.isatty():
        raise CommandError(f"{len(found)} models match; choosing one needs a terminal (or -y).")
    return _ask(found or models)


def _ask(models):
    for number, model in enumerate(models, 1):
        say("{}) {}".format(number, model["modelKey"]))
    sys.stderr.write("? Select a model to load: ")
    sys.stderr.flush()
    try:
        return models[int(sys.stdin.readline()) - 1]
    except (ValueError, IndexError):
        raise CommandError("Aborted.") from None


def _overrides(kind, values):
    prefix = kind + ".load."
    settings = {}
    if "--context-length" in values:
        settings[prefix + "contextLength"] = values["--context-length"]
    if "--gpu" in values:
        settings[prefix + "llama.acceleration.offloadRatio"] = values["--gpu"]
    if "--parallel" in values:
        settings["llm.load.numParallelSessions"] = values["--parallel"]
    for flag, (key, fixed) in _DRAFT_KEYS.items():
        if flag in values:
            settings[_DRAFT + key] = values[flag] if fixed is None else fixed
    fields = [{"key": key, "value": value} for key, value in settings.items()]
    return {"layers": [{"layerName": "apiOverride", "config": {"fields": fields}}]}


def load(arguments):
    """lms load"""
    words, values = options.parse(arguments, _LOAD_FLAGS, {"-c": "--context-length", "-y": "--yes"}, positional=1)
    place = place_of(values)
    model = _pick(words[0] if words else None, Client(place).call("listDownloadedModels"), values)
    stack = _overrides(model["type"], values)
    client = Client(place, model["type"])
    if "--estimate-only" in values:
        return _estimate(client, model, stack)
    parameter = {"modelKey": model["modelKey"], "loadConfigStack": stack}
    if "--identifier" in values:
        parameter["identifier"] = values["--identifier"]
    if "--ttl" in values:
        parameter["ttlMs"] = values["--ttl"] * 1000
    began = time.monotonic()
    identifier = None
    sys.stdout.write("\x1b[?25l")
    try:
        for message in client.stream("loadModel", parameter):
            if message["type"] == "progress":
                percent = int(message["progress"] * 100)
                sys.stdout.write(f"\r\x1b[K\x1b[36m⠋\x1b[39m Loading {model['modelKey']} {percent:3}%")
                sys.stdout.flush()
            elif message["type"] == "success":
                identifier = message["info"]["identifier"]
    except ClosedError:
        raise CommandError("The connection to LM Studio was lost.") from None
    finally:
        sys.stdout.write("\r\x1b[K\x1b[?25h\n")
        sys.stdout.flush()
    if identifier is None:
        raise CommandError("The model was not loaded.")
    say("Model loaded successfully in %.2fs." % (time.monotonic() - began))
    say(f'To use the model in the API/SDK, use the identifier "{identifier}".')
    return 0


def _estimate(client, model, stack):
    usage = client.call("estimateModelUsage", modelKey=model["modelKey"], loadConfigStack=stack)
    gib = 1024**3
    verdict = "may be loaded" if usage["fits"] else "will fail to load"
    sys.stdout.write("Model: {}\n".format(model["modelKey"]))
    sys.stdout.write("Estimated GPU Memory:   %.2f GB\n" % (usage["gpuBytes"] / gib))
    sys.stdout.write("Estimated Total Memory: %.2f GB\n\n" % (usage["totalBytes"] / gib))
    sys.stdout.write(f"Estimate: This model {verdict} based on your resource guardrails settings.\n")
    return 0


def unload(arguments):
    """lms unload: exits 0 also when the identifier is unknown."""
    flags = {"--all": None, **options.REMOTE}
    words, values = options.parse(arguments, flags, {"-a": "--all"}, positional=1)
    client = Client(place_of(values))
    loaded = [model["identifier"] for model in client.call("listLoaded")]
    if "--all" in values:
        if words:
            raise CommandError("--all cannot be combined with an identifier.")
        for identifier in loaded:
            client.call("unloadModel", identifier=identifier)
        say(f"Unloaded {len(loaded)} models.")
        return 0
    if not words:
        raise CommandError("Choosing a model to unload needs a terminal; give its identifier or --all.")
    if words[0] not in loaded:
        say(f'Cannot find a model with the identifier "{words[0]}".')
        return 0
    client.call("unloadModel", identifier=words[0])
    say(f'Model "{words[0]}" unloaded.')
    return 0


def _table(rows):
    if not rows:
        return
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        sys.stdout.write("    ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() + "\n")


def _print_json(value):
    sys.stdout.write(json.dumps(value, separators=(",", ":"), ensure_ascii=False) + "\n")


def ps(arguments):
    """lms ps"""
    _words, values = options.parse(arguments, {"--json": None, **options.REMOTE})
    loaded = Client(place_of(values)).call("listLoaded")
    for model in loaded:
        del model["instanceReference"]
    if "--json" in values:
        _print_json(loaded)
        return 0
    if not loaded:
        say("No models are currently loaded.")
        return 0
    rows = [("IDENTIFIER", "MODEL", "STATUS", "SIZE", "CONTEXT", "PARALLEL", "TTL")]
    for m in loaded:
        size = "%.2f GB" % (m["sizeBytes"] / 1e9)
        ttl = f"{m['ttlMs'] // 1000}s" if m["ttlMs"] else ""
        slots = str(m["parallel"] or "")
        rows.append((m["identifier"], m["modelKey"], m["status"].upper(), size, str(m["contextLength"]), slots, ttl))
    _table(rows)
    return 0


def ls(arguments):
    """lms ls"""
    flags = {"--llm": None, "--embedding": None, "--variants": None, "--json": None, **options.REMOTE}
    words, values = options.parse(arguments, flags, positional=1)
    models = Client(place_of(values)).call("listDownloadedModels")
    kinds = [kind for kind in ("llm", "embedding") if "--" + kind in values]
    if kinds:
        models = [model for model in models if model["type"] in kinds]
    if words:
        models = [model for model in models if model["modelKey"] == words[0]]
        if not models:
            raise CommandError(f'No model found with key "{words[0]}".')
    if "--json" in values:
        _print_json(models)
        return 0
    rows = [("MODEL", "PARAMS", "ARCH", "SIZE")]
    for m in models:
        size = "%.2f GB" % (m["sizeBytes"] / 1e9)
        rows.append((m["modelKey"], m.get("paramsString", ""), m.get("architecture", ""), size))
    _table(rows)
    return 0
