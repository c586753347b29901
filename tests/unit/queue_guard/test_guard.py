# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard as a process: what it asks, what it writes, and what it makes of answers that are none."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import urllib.request

import pytest


def scrape(gateway):
    with urllib.request.urlopen(f"http://127.0.0.1:{gateway.metrics_port}/metrics", timeout=5) as answer:
        return answer.read().decode()


def test_a_long_queue_is_paused_and_comes_back_when_a_trial_is_fast(gateway):
    gateway.start()
    gateway.until(lambda: all(instance.trials for instance in gateway.instances))
    slow = gateway.instances[1]
    slow.queued, slow.trial_seconds = 30, 0.5
    gateway.until_paused("d1")
    pause = gateway.pauses()["d1"]
    assert pause["reason"] == "queue 30 is above 8 (parallel 2)"
    assert pause["since"] <= time.time() and 0 < pause["until"] - time.time() <= 5
    slow.queued = 0
    tried = slow.trials
    gateway.until(lambda: slow.trials >= tried + 3)
    assert list(gateway.pauses()) == ["d1"], "its queue is empty, for it gets nothing; it is as slow as before"
    slow.trial_seconds = 0.0
    gateway.until_paused()
    told = [(line["decision"], line["deployment"]) for line in gateway.lines() if "decision" in line]
    assert told == [("pause", "d1"), ("resume", "d1")]
    assert next(line for line in gateway.lines() if line.get("decision") == "pause")["queued"] == 30


def endless(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"4000\r\n" + b" " * 0x4000 + b"\r\n")


def dripping(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n")
    while True:
        connection.sendall(b" ")
        time.sleep(0.05)


def answer(body, head=b"HTTP/1.1 200 OK"):
    return head + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"\x00\xff garbage\n", "not HTTP"),
        (answer(b"<html>hello</html>"), "not JSON"),
        (answer(b'{"age": 0, "models": ['), "not JSON"),
        (answer(b"[]"), "not a JSON object"),
        (answer(b"{}", b"HTTP/1.1 500 Oops"), "HTTP 500"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", "cut off"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", "is refused"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200, "headers"),
        (b"HTTP/1.1 200 OK\r\na: " + b"b" * 200000, "line without an end"),
        (endless, "is refused"),
        (dripping, "no whole answer within 1 s"),
        (answer(b'{"age": 0, "models": []}'), "m is not loaded"),
        (answer(b'{"age": 61, "models": []}'), "61 s old"),
        (answer(b'{"age": -1, "models": []}'), "age"),
        (answer(b'{"age": NaN, "models": []}'), "age"),
        (answer(b'{"models": []}'), "age"),
        (answer(b'{"age": 0, "models": [{"identifier": "m", "loaded": true, "queued": -4}]}'), "queue of m is -4"),
    ],
)
def test_what_answers_wrongly_is_paused_and_said(gateway, raw, said):
    gateway.instances[2].raw = raw
    gateway.start()
    gateway.until_paused("d2")
    assert (
        said in gateway.pauses()["d2"]["reason"]
        and f":{gateway.instances[2].port}/" in gateway.pauses()["d2"]["reason"]
    )
    gateway.instances[2].raw = None
    gateway.until_paused()


def test_a_hang_and_a_machine_that_is_gone_hold_up_nobody(gateway):
    gateway.instances[1].hang = True
    gateway.start()
    gateway.until_paused("d1")
    gateway.instances[1].close()
    gateway.rounds()
    assert list(gateway.pauses()) == ["d1"]
    asked = gateway.instances[0].asked
    gateway.until(lambda: gateway.instances[0].asked > asked)


def test_a_trial_that_hangs_holds_up_nobody_and_there_is_only_one(gateway):
    gateway.limits = {"timeout": 0.2, "trial_timeout": 30}
    gateway.instances[1].trial_seconds = 20
    gateway.start()
    gateway.rounds(10)
    gateway.instances[0].queued = 99
    gateway.until_paused("d0")
    assert gateway.instances[1].trials == 1


def test_a_trial_that_takes_longer_than_a_look_is_taken_up_later(gateway):
    gateway.limits = {"timeout": 0.2}
    gateway.start()
    gateway.until(lambda: all(instance.trials for instance in gateway.instances))
    slow = gateway.instances[1]
    slow.queued, slow.trial_seconds = 30, 0.7
    gateway.until_paused("d1")
    slow.queued, tried = 0, slow.trials
    gateway.until(lambda: slow.trials >= tried + 3)
    assert list(gateway.pauses()) == ["d1"], "as slow as before"
    slow.trial_seconds = 0.0
    gateway.until_paused()


def test_a_deployment_whose_requests_fail_is_paused(gateway):
    gateway.instances[1].chat = {"error": "out of memory"}
    gateway.start()
    gateway.until_paused("d1")
    assert "answered without a result" in gateway.pauses()["d1"]["reason"]
    gateway.instances[1].chat = {"choices": [{"message": {"content": "p"}}]}
    gateway.until_paused()


def test_a_first_token_that_comes_too_late_is_a_reason(gateway):
    gateway.settings["max_first_token"] = 0.5
    gateway.limits = {"trial_interval": 0.3}
    gateway.start()
    gateway.rounds()
    gateway.instances[2].trial_seconds = 0.8
    gateway.until_paused("d2")
    assert "later than 0.5 s" in gateway.pauses()["d2"]["reason"]
    gateway.instances[2].trial_seconds = 0.0
    gateway.until_paused()


def test_pauses_outlive_a_restart_and_are_renewed(gateway):
    gateway.start()
    gateway.instances[0].queued = 99
    gateway.until_paused("d0")
    since = gateway.pauses()["d0"]["since"]
    gateway.until(lambda: "d0" in (gateway.folder / "guard.json").read_text())  # its memory, which it writes next
    gateway.end(signal.SIGKILL)
    generation = json.loads((gateway.registry / "paused" / "guard.json").read_text())["generation"]
    gateway.start()
    gateway.rounds()
    gateway.until(
        lambda: json.loads((gateway.registry / "paused" / "guard.json").read_text())["generation"] > generation
    )
    assert gateway.pauses()["d0"]["since"] == since
    gateway.instances[0].queued = 0
    gateway.until_paused()


def test_a_second_guard_is_refused(gateway):
    gateway.start()
    gateway.rounds(1)
    first = gateway.processes[-1].pid
    second = gateway.start()
    assert second.wait(10) == 69 and f"process {first} guards already" in gateway.said()


@pytest.mark.parametrize("broken", ["{", "[]", '{"deployments": [{}]}', None])
def test_a_broken_registry_is_said_once_and_the_last_good_one_holds(gateway, broken):
    gateway.start()
    gateway.rounds(1)
    file = gateway.registry / "deployments.json"
    if broken is None:
        file.unlink()
    else:
        file.write_text(broken)
    gateway.instances[0].queued = 99
    gateway.until_paused("d0")
    gateway.rounds()
    assert len([line for line in gateway.lines() if line.get("trouble") == "registry"]) == 1
    gateway.declare()
    gateway.until(lambda: gateway.lines()[-1].get("text") == "it is over")


def test_deployments_come_and_go(gateway):
    gateway.declare(2)
    gateway.start()
    gateway.rounds(2)
    assert gateway.instances[2].asked == 0
    gateway.declare()
    gateway.instances[2].queued = 99
    gateway.until_paused("d2")
    gateway.declare(2)
    gateway.until_paused()


def test_a_pause_of_the_operator_is_left_alone_and_counted(gateway):
    operator = {"format": 1, "generation": 1, "paused": {"d1": {"reason": "repair", "since": 1}, "d2": {"until": 5}}}
    path = gateway.registry / "paused" / "operator.json"
    path.write_text(json.dumps(operator))
    gateway.instances[1].queued = gateway.instances[2].queued = 99
    gateway.start()
    gateway.until_paused("d2")  # the operator's pause of d2 is over
    gateway.rounds()
    assert sorted(gateway.pauses()) == ["d2"] and json.loads(path.read_text()) == operator
    assert gateway.instances[1].trials == 0, "the operator wants it idle"
    text = scrape(gateway)
    assert 'lmfleet_deployment_paused{deployment="d1",group="g",host="mac",instance="i1",owner="operator"} 1' in text
    assert 'lmfleet_deployment_paused{deployment="d2",group="g",host="mac",instance="i2",owner="guard"} 1' in text
    assert 'lmfleet_deployment_queue{deployment="d2",group="g",host="mac",instance="i2"} 99' in text
    assert 'lmfleet_guard_decisions_total{action="pause",group="g"} 1' in text


def test_a_disk_that_is_full_stops_nothing(gateway):
    gateway.start()
    gateway.rounds(1)
    # A folder that takes no new file stands for the full disk: even root cannot write below a file.
    paused = gateway.registry / "paused"
    paused.rmdir()
    paused.write_text("")
    gateway.instances[0].queued = 99
    gateway.until(lambda: any(line.get("trouble") == "write" for line in gateway.lines()))
    paused.unlink()
    gateway.until_paused("d0")
    assert gateway.processes[-1].poll() is None


@pytest.mark.parametrize(
    ("changes", "said"), [({"interval": 0}, "above 0"), ({"ttl": 0.1}, "ttl"), ({"colour": 1}, "colour")]
)
def test_settings_that_make_no_sense_are_refused(gateway, changes, said):
    process = gateway.start(**changes)
    assert process.wait(10) == 78 and said in gateway.said()


def test_a_taken_metrics_port_is_said(gateway):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = gateway.start(metrics_port=listener.getsockname()[1])
        assert process.wait(10) == 69 and str(listener.getsockname()[1]) in gateway.said()


def test_it_ends_at_once_when_it_is_told_to(gateway):
    gateway.instances[0].hang = True
    gateway.start()
    gateway.until(lambda: gateway.instances[0].asked)
    assert gateway.end() == 0 and not os.path.exists(gateway.registry / "paused" / "guard.json")
