# SPDX-License-Identifier: GPL-3.0-or-later
"""The module litellm_deployments with registry: api, against an admin API with LiteLLM's ways.

The real LiteLLM with a real database stands in tests/gateway/test_postgres.py.
"""

from __future__ import annotations

import copy
import datetime
import ipaddress
import json
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.lmfleet.mac.plugins.modules import litellm_deployments
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

A = {"id": "a", "model_group": "chat", "model": "m", "api_base": "http://mac:1234/v1"}
B = {**A, "id": "b"}
KEY = "sk-master"
CHANGING = ("/model/new", "/update", "/model/delete")


class AdminApi(BaseHTTPRequestHandler):
    """What LiteLLM 1.106.2 answers: tokens are never given back, a taken id is a 500, an unknown one a 400 or 404."""

    def do_GET(self):
        server = self.server
        if self.path == "/health/readiness":
            status, db = (200, server.db) if server.db != "disconnected" else (503, "disconnected")
            return self.answer(status, {"status": "healthy", "db": db})
        if self.headers["Authorization"] != f"Bearer {KEY}":
            return self.answer(401, {"error": {"message": "Authentication Error"}})
        if server.db == "disconnected":
            return self.answer(503, {"error": {"message": "the authentication database is temporarily unreachable"}})
        if server.blind:
            server.blind -= 1
            return self.answer(503, {"error": {"message": "Please retry shortly.", "type": "no_db_connection"}})
        rows = server.stale.pop(0) if server.stale else list(server.rows.values())
        return self.answer(200, {"data": [shown(row) for row in rows]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        rows = self.server.rows
        self.server.asked.append((self.command, self.path))
        if self.server.db == "disconnected":
            return self.answer(500, {"error": {"message": "Failed to add model to db"}})
        if self.path == "/model/delete":
            return self.answer(200 if rows.pop(body["id"], None) else 400, {})
        if self.path == "/model/new":
            taken = body["model_info"]["id"] in rows
            rows.setdefault(body["model_info"]["id"], body)
            return self.answer(500 if taken else 200, {})
        name = self.path.split("/")[2]
        if name not in rows:
            return self.answer(404, {})
        if self.server.lost:
            # LiteLLM reads, merges and writes the row: who is as quick as this one writes the former row.
            self.server.lost -= 1
            return self.answer(200, {})
        for part in ("litellm_params", "model_info"):
            rows[name][part].update(body.get(part, {}))
        rows[name].update({key: body[key] for key in ("model_name", "blocked") if key in body})
        return self.answer(200, {})

    def do_PATCH(self):
        self.do_POST()

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_arguments):
        pass


def shown(row):
    params = {key: value for key, value in row["litellm_params"].items() if key != "api_key"}
    info = {"db_model": True, "blocked": row.get("blocked", False), "max_tokens": None, **row["model_info"]}
    return {"model_name": row["model_name"], "litellm_params": {**params, "use_xai_oauth": False}, "model_info": info}


@pytest.fixture
def gateway():
    server = ThreadingHTTPServer(("127.0.0.1", 0), AdminApi)
    server.rows, server.db, server.asked, server.stale, server.blind = {}, "connected", [], [], 0
    server.lost = 0
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(gateway, capsys):
    def run(**arguments):
        given = {"registry": "api", "url": f"http://127.0.0.1:{gateway.server_port}", "master_key": KEY}
        given = {**given, "timeout": 2, "reload_interval": 0.1, "_ansible_diff": True, **arguments}
        given = {name: value for name, value in given.items() if value is not None}
        with patch_module_args(given), pytest.raises(SystemExit):
            litellm_deployments.main()
        return json.loads(capsys.readouterr().out)

    return run


def test_the_first_call_adds_and_the_second_changes_nothing(run, gateway):
    result = run(deployments=[A, {**B, "api_key": "token", "weight": 2, "host": "mac"}])
    assert (result["changed"], result["added"], result["deployments"]) == (True, ["a", "b"], ["a", "b"])
    gateway.asked.clear()
    assert run(deployments=[A, {**B, "api_key": "token", "weight": 2, "host": "mac"}])["changed"] is False
    assert gateway.asked == []


def test_check_mode_tells_the_same_and_calls_nothing(run, gateway):
    foreseen = run(deployments=[A], _ansible_check_mode=True)
    assert (foreseen["changed"], gateway.asked) == (True, [])
    assert run(deployments=[A])["diff"] == foreseen["diff"]


def test_a_token_is_neither_in_a_note_nor_in_a_diff(run, gateway):
    first = run(deployments=[{**A, "api_key": "secret-1"}])
    second = run(deployments=[{**A, "api_key": "secret-2"}])
    assert (second["updated"], "another one" in second["diff"]["after"]) == (["a"], True)
    assert "secret-" not in str(first["diff"]) + str(second["diff"]) + gateway.rows["a"]["model_info"]["lmfleet"]
    assert gateway.rows["a"]["litellm_params"]["api_key"] == "secret-2"


def test_a_pause_by_id_leaves_the_token_alone(run, gateway):
    run(deployments=[{**A, "api_key": "secret"}])
    run(deployments=[{"id": "a", "state": "paused"}], owner="operator")
    assert gateway.rows["a"]["litellm_params"]["api_key"] == "secret"
    assert run(deployments=[{**A, "api_key": "secret"}])["updated"] == []


def test_a_setting_that_goes_is_gone(run, gateway):
    run(deployments=[{**A, "timeout": 2}])
    assert run(deployments=[A])["updated"] == ["a"]
    assert "timeout" not in gateway.rows["a"]["litellm_params"]
    assert run(deployments=[A])["changed"] is False


def test_what_a_neutral_value_takes_away_costs_no_removal(run, gateway):
    more = {"weight": 2, "parallel_limit": 4, "parallel": 4, "host": "mac", "instance": "i", "status_url": "http://x/s"}
    run(deployments=[{**A, **more}])
    gateway.asked.clear()
    result = run(deployments=[A])
    assert (result["updated"], gateway.asked) == (["a"], [("PATCH", "/model/a/update")])
    row = gateway.rows["a"]
    assert row["litellm_params"]["weight"] == 1
    assert not any(row["model_info"][key] for key in more if key != "weight")
    gateway.asked.clear()
    assert run(deployments=[A])["changed"] is False
    # What had such a value can have another one again, and lose what there is no neutral value for.
    assert run(deployments=[{**A, **more, "timeout": 3}])["updated"] == ["a"]
    assert [row["model_info"]["host"], row["litellm_params"]["weight"]] == ["mac", 2]
    gateway.asked.clear()
    assert run(deployments=[A])["updated"] == ["a"]
    assert [path for __, path in gateway.asked] == ["/model/delete", "/model/new"]
    assert not set(more) & set(gateway.rows["a"]["model_info"])


def test_each_has_a_weight_or_litellm_would_give_nothing_to_those_without(run, gateway):
    run(deployments=[A, {**B, "weight": 2}])
    assert [gateway.rows[name]["litellm_params"]["weight"] for name in "ab"] == [1, 2]
    run(deployments=[A, B])
    assert gateway.rows["b"]["litellm_params"]["weight"] == 1
    assert run(deployments=[A, B])["changed"] is False


def test_what_somebody_changed_by_hand_is_put_right(run, gateway):
    run(deployments=[A, B])
    gateway.rows["a"]["litellm_params"]["api_base"] = "http://elsewhere/v1"
    gateway.rows["b"]["blocked"] = True
    assert run(deployments=[A, B])["changed"]
    assert gateway.rows["a"]["litellm_params"]["api_base"] == A["api_base"]
    assert gateway.rows["b"]["blocked"] is False


def test_each_owner_lifts_its_own_pauses_only(run, gateway):
    run(deployments=[A, {**B, "state": "paused"}], owner="operator", reason="memory")
    assert (gateway.rows["a"]["blocked"], gateway.rows["b"]["blocked"]) == (False, True)
    both = run(deployments=[{"id": "b", "state": "paused"}], owner="rollout")
    assert sorted(both["paused"]["b"]) == ["operator", "rollout"]
    left = run(deployments=[{"id": "b"}], owner="rollout")
    assert (list(left["paused"]["b"]), gateway.rows["b"]["blocked"]) == (["operator"], True)
    assert left["paused"]["b"]["operator"]["reason"] == "memory"
    assert run(deployments=[{"id": "b"}], owner="operator")["paused"] == {}
    assert gateway.rows["b"]["blocked"] is False


def rows_now(gateway):
    """Return what a worker still shows that learns of later changes later."""
    return copy.deepcopy(list(gateway.rows.values()))


def test_two_owners_that_pause_at_once_both_do(run, gateway):
    run(deployments=[A, B])
    kept = rows_now(gateway)
    run(deployments=[{"id": "a", "state": "paused"}], owner="operator", reason="memory")
    gateway.stale = [kept]
    both = run(deployments=[{"id": "a", "state": "paused"}], owner="rollout")
    assert (both["changed"], gateway.rows["a"]["blocked"]) == (True, True)
    assert sorted(run(deployments=[{"id": "a"}])["paused"]["a"]) == ["operator", "rollout"]


def test_who_lifts_a_pause_sees_to_one_that_was_set_meanwhile(run, gateway):
    run(deployments=[A, {**B, "state": "paused"}], owner="rollout")
    kept = rows_now(gateway)
    run(deployments=[{"id": "b", "state": "paused"}], owner="operator")
    gateway.stale = [kept]
    run(deployments=[{"id": "b"}], owner="rollout")
    assert gateway.rows["b"]["blocked"] is True
    assert list(run(deployments=[{"id": "b"}])["paused"]["b"]) == ["operator"]


def test_a_pause_of_others_keeps_nobody_waiting_and_leaves_the_declaration_alone(run, gateway):
    run(deployments=[A, B])
    kept = rows_now(gateway)
    run(deployments=[{**A, "timeout": 5, "api_key": "new"}])
    gateway.stale = [kept]
    run(deployments=[{"id": "a", "state": "paused"}], owner="operator", timeout=0)
    assert gateway.rows["a"]["litellm_params"]["api_key"] == "new"
    assert run(deployments=[{**A, "timeout": 5, "api_key": "new"}])["changed"] is False


def test_a_pause_that_another_call_has_undone_is_set_again(run, gateway):
    run(deployments=[A, B])
    gateway.lost = 1
    run(deployments=[{"id": "a", "state": "paused"}], owner="operator")
    assert gateway.rows["a"]["blocked"] is True
    assert list(run(deployments=[{"id": "a"}])["paused"]["a"]) == ["operator"]


def test_a_pause_that_is_undone_each_time_is_told_of(run, gateway):
    run(deployments=[A, B])
    gateway.lost = 1000
    assert "does not know a" in run(deployments=[{"id": "a", "state": "paused"}], owner="operator", timeout=0.5)["msg"]


def test_a_pause_that_has_ended_is_lifted_by_the_next_run(run, gateway):
    run(deployments=[{**A, "state": "paused"}, B], owner="operator", expire_after=0.5)
    assert gateway.rows["a"]["blocked"]
    time.sleep(0.6)
    assert run(deployments=[A, B])["changed"]
    assert gateway.rows["a"]["blocked"] is False


def test_the_guard_alone_never_empties_a_group(run, gateway):
    run(deployments=[{**A, "state": "paused"}, {**B, "state": "paused"}], owner="guard")
    assert (gateway.rows["a"]["blocked"], gateway.rows["b"]["blocked"]) == (False, False)
    run(deployments=[{"id": "a"}], owner="guard")
    assert (gateway.rows["a"]["blocked"], gateway.rows["b"]["blocked"]) == (False, True)


def test_purge_leaves_what_others_made(run, gateway):
    gateway.rows["hand"] = {"model_name": "x", "litellm_params": {"model": "m"}, "model_info": {"id": "hand"}}
    config = {"id": "config", "db_model": False}
    gateway.rows["config"] = {"model_name": "x", "litellm_params": {"model": "m"}, "model_info": config}
    run(deployments=[A, B])
    # Somebody took what the gateway tells of a deployment into config.yaml.
    config["lmfleet"] = gateway.rows["a"]["model_info"]["lmfleet"]
    assert run(deployments=[A], purge=True)["removed"] == ["b"]
    assert sorted(gateway.rows) == ["a", "config", "hand"]
    refused = run(deployments=[{**A, "id": "config"}])
    assert "another deployment with the id config" in refused["msg"]


def test_what_a_killed_run_left_is_done_by_the_next(run, gateway):
    run(deployments=[A, B])
    # A worker that has not looked into the database since then tells the former state.
    gateway.stale = [[]]
    gateway.asked.clear()
    result = run(deployments=[A, B])
    assert result["changed"] is False
    assert gateway.asked == [("POST", "/model/new")]


def test_it_waits_until_no_worker_tells_a_former_state(run, gateway):
    gateway.stale = [[], [], []]
    began = time.monotonic()
    assert run(deployments=[A], reload_interval=1.5)["added"] == ["a"]
    assert time.monotonic() - began >= 1.5
    assert gateway.stale == []


def test_a_worker_that_never_learns_is_told_of(run, gateway):
    gateway.stale = [[]] * 200
    result = run(deployments=[A], timeout=0.5)
    assert result["failed"]
    assert "one that does not know a" in result["msg"]


@pytest.mark.parametrize(
    ("db", "arguments", "message"),
    [
        ("disconnected", {}, "does not reach its database (Postgres)"),
        ("Not connected", {}, "has no database"),
        ("connected", {"master_key": "sk-wrong"}, "HTTP 401"),
        ("connected", {"url": "http://127.0.0.1:9"}, "does not answer"),
        ("connected", {"url": None}, "needs url"),
        ("connected", {"master_key": None}, "either master_key or master_key_file"),
        ("connected", {"master_key_file": "/nonexistent/key", "master_key": None}, "/nonexistent/key"),
        ("connected", {"routing": "shuffle"}, "routing_strategy"),
        ("connected", {"deployments": [A, A]}, "is used 2 times"),
        ("connected", {"model_groups": [{"name": "embed"}]}, "embed has no deployment"),
        ("connected", {"model_groups": [{"name": "chat", "fallbacks": ["b"]}]}, "litellm_router_settings"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_changed(run, gateway, db, arguments, message):
    gateway.db = db
    result = run(**{"deployments": [A], **arguments})
    assert result["failed"]
    assert message in result["msg"]
    assert KEY not in result["msg"]
    assert gateway.asked == []


@pytest.mark.parametrize(
    ("db", "arguments", "problem"),
    [
        ("connected", {"master_key_file": "/nonexistent/key", "master_key": None}, "no /nonexistent/key. Set up the"),
        ("connected", {"url": "http://127.0.0.1:9"}, "does not answer"),
        ("Not connected", {}, "has no database"),
    ],
)
def test_check_mode_plans_for_a_gateway_that_is_not_there_yet(run, gateway, db, arguments, problem):
    foreseen = run(deployments=[A], _ansible_check_mode=True)
    gateway.db = db
    result = run(deployments=[A], _ansible_check_mode=True, **arguments)
    assert problem in result["problem"]
    assert (result["changed"], result["added"]) == (True, ["a"])
    assert result["diff"]["after"] == foreseen["diff"]["after"]
    assert "problem" not in foreseen
    assert gateway.asked == []
    assert run(deployments=[], _ansible_check_mode=True, **arguments)["changed"] is False


def test_check_mode_tells_a_database_that_is_down(run, gateway):
    gateway.db = "disconnected"
    assert "does not reach its database" in run(deployments=[A], _ansible_check_mode=True)["msg"]


def test_a_database_that_goes_in_the_middle_is_named(run, gateway, monkeypatch):
    def fails(self, planned):
        gateway.db = "disconnected"
        return original(self, planned)

    original = litellm_deployments.ApiRegistry.apply
    monkeypatch.setattr(litellm_deployments.ApiRegistry, "apply", fails)
    assert "does not reach its database (Postgres)" in run(deployments=[A])["msg"]


def test_a_worker_that_is_about_to_find_its_database_is_waited_for(run, gateway):
    gateway.blind = 1
    assert run(deployments=[A])["added"] == ["a"]
    gateway.blind = 1000
    assert "Please retry shortly" in run(deployments=[A, B], timeout=0.1)["msg"]


@pytest.fixture
def certificate(tmp_path, gateway):
    """The gateway speaks TLS, with a certificate that this machine does not know."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path = tmp_path / "gateway.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, *plain) + signed.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    gateway.socket = context.wrap_socket(gateway.socket, server_side=True)
    gateway.handle_error = lambda *_arguments: None
    return path


def test_the_certificate_of_the_gateway_is_looked_at(run, gateway, certificate, tmp_path):
    url = f"https://127.0.0.1:{gateway.server_port}"
    refused = run(deployments=[A], url=url)
    assert "does not answer" in refused["msg"]
    assert "certificate" in refused["msg"].lower()
    assert run(deployments=[A], url=url, ca_path=str(certificate))["added"] == ["a"]
    assert run(deployments=[A], url=url, validate_certs=False)["changed"] is False
    assert run(deployments=[A], url=url, ca_path=str(tmp_path / "absent.pem"))["failed"]
