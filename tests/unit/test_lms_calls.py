# SPDX-License-Identifier: GPL-3.0-or-later
"""Every call of lms that the code can make: a line lms knows, for one home and no other, and with a timeout.

The calls are read from the source, so that a new one is checked too, or has to be made known here.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
import time
from pathlib import Path

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _catalog, _lms, _lms_get, _memory_facts

from instance_runner.declaration import Model, parse_declaration
from instance_runner.files import Places
from instance_runner.lms import Answer, Lms
from instance_runner.models import Models
from instance_runner.plan import load_arguments

REPOSITORY = Path(__file__).resolve().parents[2]
RUNNER = "roles/lmstudio_instances/files/runner/instance_runner"
SOURCES = {
    str(path.relative_to(REPOSITORY)): path.read_text()
    for part in ("plugins", "roles")
    for path in sorted((REPOSITORY / part).rglob("*.py"))
}

#: What starts programs in the files that know of lms. Each of the first three is called below, with a lms that hangs.
STARTERS = {
    ("plugins/module_utils/_lms.py", "call"),
    ("plugins/module_utils/_memory_facts.py", "_call"),
    (f"{RUNNER}/lms.py", "ask"),
    ("plugins/modules/mac_host_check.py", "_output"),  # sysctl and the like
}

WHOLE, WORD, SWITCH = r"[1-9][0-9]*", r"[^-].*", None
#: What of the grammar of lms the collection uses: {command: (positional words, {flag: its value})}. Never here:
#: `daemon update` and `runtime update`, which take the newest; `daemon up`, which detaches; `bootstrap`, which asks.
GRAMMAR = {
    ("load",): (
        1,
        {
            "--gpu": r"off|max|0(\.[0-9]+)?|1(\.0+)?",
            "--context-length": WHOLE,
            "--parallel": r"[1-9][0-9]{0,2}|10[01][0-9]|102[0-3]",
            "--identifier": WORD,
            "--estimate-only": SWITCH,
            "-y": SWITCH,
        },
    ),
    ("unload",): (1, {}),
    ("ps",): (0, {"--json": SWITCH}),
    ("ls",): (0, {"--json": SWITCH}),
    ("get",): (1, {"--mlx": SWITCH, "--gguf": SWITCH, "-y": SWITCH}),
    ("server", "start"): (0, {"--port": WHOLE, "--bind": WORD}),
    ("daemon", "status"): (0, {"--json": SWITCH}),
    ("runtime", "ls"): (0, {}),
    ("runtime", "select"): (1, {}),
}

#: An example of what stands in an argument list and is known at run time only.
EXAMPLES = {
    "identifier": "chat-2",
    "one": "llama.cpp-mac-arm64-apple-metal-advsimd@2.27.1",
    "str(self.declaration.port)": "1244",
    "self.declaration.address": "10.0.0.1",
}
#: Argument lists made elsewhere: by functions tested below, or by the callers of the function that hands them on.
ELSEWHERE = {
    "load_arguments(model, key)",
    "estimate_arguments(key, load)",
    "[install.lms, *get_arguments(name, weights)]",
    "self.declaration.lms",
}
#: llmster is called as lms is.
LLMSTER = ("[program, 'bootstrap']", "[install.llmster, '--version']")


def refused(words: list[str]) -> str:
    """Return why these are no arguments for lms, nothing when they are."""
    command = next((name for name in GRAMMAR if tuple(words[: len(name)]) == name), None)
    if command is None:
        return f"not a command we may use: {words}"
    positional, flags = GRAMMAR[command]
    rest, count = words[len(command) :], 0
    while rest:
        word, *rest = rest
        if not word.startswith("-"):
            count += 1
        elif word not in flags:
            return f"unknown option {word}"
        elif flags[word] is not SWITCH:
            value, *rest = rest or [""]
            if not re.fullmatch(flags[word], value):
                return f"{word} does not take {value!r}"
    return "" if count == positional else f"{count} words, not {positional}"


def functions(text: str):
    return [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]


def calls(function: ast.FunctionDef, names: str):
    """Yield the first argument of each call, in a function, of what the regular expression `names` matches."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and re.fullmatch(names, ast.unparse(node.func)):
            # What is meant is what a name was given in this function.
            given = [
                one.value
                for one in ast.walk(function)
                if node.args
                and isinstance(one, ast.Assign)
                and ast.unparse(one.targets[0]) == ast.unparse(node.args[0])
            ]
            yield given[0] if len(given) == 1 else node.args[0] if node.args else None


def starts_something_unknown(function: ast.FunctionDef) -> bool:
    names = r"(_command\.)?run|subprocess\.\w+|os\.(system|popen|(exec|posix_spawn|spawn)\w*)|.*\.run_command"
    return any(
        not (
            isinstance(argv, ast.List)
            and isinstance(argv.elts[0], ast.Constant)
            and argv.elts[0].value.startswith(("/bin/", "/usr/"))
        )
        for argv in calls(function, names)
    )


def lines() -> list[tuple[str, ast.expr]]:
    """Return (file, expression) of the argument lists given to what calls lms."""
    callers = {file: text for file, text in SOURCES.items() if file.startswith(RUNNER) or re.search(r"\b_lms\b", text)}
    return [
        (file, argument)
        for file, text in callers.items()
        for function in functions(text)
        for argument in calls(function, r"(self\.|ask\.)?(_?call|_?ask)|_lms\.call|self\.lms\.ask")
    ]


def test_only_known_functions_start_programs():
    found = {
        (file, function.name)
        for file, text in SOURCES.items()
        if re.search(r"\b_?lms\b", text)
        for function in functions(text)
        if starts_something_unknown(function)
    }
    assert found == STARTERS


def test_every_line_written_down_is_one_lms_knows():
    commands = set()
    for file, argument in lines():
        source = ast.unparse(argument)
        if source in ELSEWHERE or source in LLMSTER:
            continue
        assert isinstance(argument, ast.List), f"{file}: {source}: cannot be told; is it one for ELSEWHERE?"
        items = [item for item in argument.elts if ast.unparse(item) != "lms"]
        words = [item.value if isinstance(item, ast.Constant) else EXAMPLES[ast.unparse(item)] for item in items]
        assert not refused(words), f"{file}: {source}: {refused(words)}"
        commands.add(next(name for name in GRAMMAR if tuple(words[: len(name)]) == name))
    assert commands == set(GRAMMAR) - {("load",), ("get",)}, "GRAMMAR allows no more than what is used"


@pytest.mark.parametrize(
    "line",
    [
        "daemon update",
        "daemon up --json",
        "bootstrap",
        "runtime update",
        "load key --flash-attention",
        "load key --gpu 2",
        "load key --parallel 1024",
        "load key --identifier -y",
        "load -y",
        "unload",
        "unload -a",
        "get",
        "get qwen/qwen3 --select",
        "get qwen/qwen3 --limit 1",
        "ps all",
        "server start --port",
    ],
)
def test_the_grammar_refuses(line):
    assert refused(line.split())


def test_loads_are_lines_lms_knows():
    contexts, parallels, gpus = (None, 1, 131072), (None, 1, 1023), (None, "max", "off", "0", "0.5", "1.0", "1")
    for context, parallel, gpu in itertools.product(contexts, parallels, gpus):
        model = Model("chat-2", "p/n/f.gguf", "llm", context, parallel, gpu, "1", {})
        assert not refused(load_arguments(model, "chat-key"))
        load = {"context_length": context, "parallel": parallel, "gpu": gpu, "mmap": True}
        given = {key: value for key, value in load.items() if value is not None}
        assert not refused(_memory_facts.estimate_arguments("chat-key", given))


@pytest.mark.parametrize("name", ["qwen/qwen3-4b@q4_k_m", "qwen3-4b-2507", "llama-3.1-8b@Q4_K_M", "a/b@4bit"])
@pytest.mark.parametrize("weights", ["gguf", "mlx"])
def test_gets_are_lines_lms_knows(name, weights):
    assert _catalog.NAME.fullmatch(name)
    assert not refused(_lms_get.get_arguments(name, weights))


@pytest.mark.parametrize(
    "name",
    [
        "-y",
        "--mlx",
        "",
        "Qwen/qwen3",
        "a/b/c",
        "https://huggingface.co/a/b",
        "a_b/c",
        "a/b@",
        "a/b@c@d",
        "a/b c",
        "a/b\n",
    ],
)
def test_nothing_else_is_given_to_get(name):
    assert not _catalog.NAME.fullmatch(name)


def test_a_name_that_would_be_an_option_is_never_given_to_lms():
    names = [{"identifier": "-a", "modelKey": "-a", "path": "p/n/f", "deviceIdentifier": None}]
    asked = []

    def ask(words, *_timeout, **_refresh):
        asked.append(words)
        return Answer(json.dumps(names), "", False)

    models = Models(ask, dict, lambda: None)
    entry = {"identifier": "chat", "path": "p/n/f", "type": "llm", "fingerprint": "1"}
    times = dict.fromkeys(("start_timeout", "load_timeout", "stop_timeout", "poll_interval"), 5)
    content = {"name": "a", "address": "::1", "port": 1, "llmster": "/l", "lms": "/s", "purge": True, **times}
    models.look()
    models.reconcile(parse_declaration(json.dumps({**content, "models": [entry]}).encode()), lambda: False)
    assert asked == [["ps", "--json"], ["ls", "--json"]]
    assert "would take its name for an option" in models.failures["-a"].error
    assert "no name that lms can be given" in models.failures["chat"].error


def by_module(program, home, timeout):
    return _lms.call([program, "ps", "--json"], home, timeout)


def by_memory_facts(program, home, timeout):
    user = {"uid": 0, "gid": 0}
    return _memory_facts._Asking(program, home, user, time.monotonic() + timeout).keys()


def by_runner(program, home, timeout):
    return Lms(Places(home), lambda seconds: time.sleep(min(seconds, 0.05))).ask(program, ["ps", "--json"], timeout)


WAYS = pytest.mark.parametrize("ask", [by_module, by_memory_facts, by_runner])


@WAYS
def test_a_call_is_for_one_home_and_no_other(tmp_path, monkeypatch, ask):
    monkeypatch.setenv("LMS_API_SERVER_INFO_PATH", "/Users/admin/.lmstudio/.internal/http-server.json")
    lms, noted = tmp_path / "lms", tmp_path / "noted"
    lms.write_text(f'#!/bin/sh\necho "$HOME $LMS_API_SERVER_INFO_PATH" >{noted}\n')
    lms.chmod(0o755)
    ask(str(lms), str(tmp_path), 30)
    assert noted.read_text().split() == [str(tmp_path), f"{tmp_path}/.lmstudio/.internal/http-server.json"]


@WAYS
def test_a_call_that_hangs_is_ended(tmp_path, ask):
    lms = tmp_path / "lms"
    lms.write_text("#!/bin/sh\nexec sleep 300\n")
    lms.chmod(0o755)
    began = time.monotonic()
    ask(str(lms), str(tmp_path), 0.5)
    assert time.monotonic() - began < 200
