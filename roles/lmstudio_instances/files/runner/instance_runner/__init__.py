# SPDX-License-Identifier: GPL-3.0-or-later
"""The instance runner: one LM Studio server as a launchd job.

It starts llmster in the foreground with a HOME of its own, starts the server, loads the models that
``<instance home>/instance.json`` declares, and then watches. What it sees stands in ``<instance home>/status.json``.

Needs nothing but the Python 3.9 of the Command Line Tools. It is shipped as one file, a zip archive that Python runs.
"""
