# SPDX-License-Identifier: GPL-3.0-or-later
"""The example dashboard and alert rules ask for figures that the guard has."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import yaml

from queue_guard.decision import Deployment, Seen, Settings
from queue_guard.files import Target
from queue_guard.guard import Guard
from queue_guard.settings import Plan
from queue_guard.watching import Limits

FOLDER = Path(__file__).resolve().parents[3] / "docs" / "monitoring"
SAMPLE = re.compile(r"^(lmfleet_\w+)(?:\{(.*)\})? ", re.MULTILINE)


def figures(tmp_path):
    """Return metric to labels of all that the guard tells."""
    plan = Plan(str(tmp_path), 5, 60, "127.0.0.1", 1, 1, 1, Settings(), Limits())
    guard = Guard(str(tmp_path), plan, logging.getLogger("unused"))
    deployment = Deployment("d", "g", 4)
    guard.targets = [Target(deployment, "http://a/status", "i", "mac", "m", "chat", "http://a/v1", "", ("operator",))]
    guard.seen = {"d": Seen(queued=1, first_token=0.2)}
    guard.decisions["pause", "g"] = 1
    return {name: set(re.findall(r'(\w+)="', labels or "")) for name, labels in SAMPLE.findall(guard.metrics())}


def test_every_figure_of_the_examples_exists_with_its_labels(tmp_path):
    known = figures(tmp_path)
    dashboard = json.loads((FOLDER / "grafana-dashboard.json").read_text())
    rules = yaml.safe_load((FOLDER / "prometheus-alerts.yml").read_text())["groups"][0]["rules"]
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    expressions += [rule["expr"] for rule in rules]
    asked = set()
    for expression in expressions:
        names = set(re.findall(r"lmfleet_\w+", expression))
        asked |= names
        labels = {label for inner in re.findall(r"\{(.*?)\}", expression) for label in re.findall(r"(\w+)=", inner)}
        for name in names:
            assert labels <= known[name], expression
    assert asked == set(known), "each figure is shown somewhere"
