# SPDX-License-Identifier: GPL-3.0-or-later
"""Count what a run costs each host: modules run there, and ssh sessions opened to it.

One line for each, ``module ADDRESS NAME`` or ``session ADDRESS``, is added to the file that the environment variable
LMFLEET_BENCH_CALLS names. No callback event stands for either (an action plugin may run several modules for a task, or
none), so the two places that every such call passes through are wrapped, before Ansible forks its workers.
"""

from __future__ import annotations

import functools
import os

from ansible.plugins.action import ActionBase
from ansible.plugins.callback import CallbackBase
from ansible.plugins.connection.ssh import Connection

DOCUMENTATION = """
name: count_calls
type: aggregate
short_description: Counts module runs and ssh sessions
description: Writes one line for each to a file.
"""


def note(*words: str) -> None:
    # One short write in append mode is not torn by those of the other workers.
    with open(os.environ["LMFLEET_BENCH_CALLS"], "a", encoding="utf-8") as calls:
        calls.write(" ".join(words) + "\n")


def count_modules(method):
    @functools.wraps(method)
    def counted(action, module_name=None, *args, **kwargs):
        if action._connection.transport == "ssh":
            note("module", action._connection.get_option("host"), module_name or action._task.action)
        return method(action, module_name, *args, **kwargs)

    return counted


def count_sessions(method):
    @functools.wraps(method)
    def counted(connection, *args, **kwargs):
        note("session", connection.get_option("host"))
        return method(connection, *args, **kwargs)

    return counted


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NEEDS_ENABLED = True  # the other one stands in the same folder
    CALLBACK_NAME = "count_calls"

    def __init__(self) -> None:
        super().__init__()
        ActionBase._execute_module = count_modules(ActionBase._execute_module)
        for name in ("exec_command", "put_file", "fetch_file"):
            setattr(Connection, name, count_sessions(getattr(Connection, name)))
