# SPDX-License-Identifier: GPL-3.0-or-later
"""How the role gateway_deployments asks several gateways, here one server in the place of all of them."""

from __future__ import annotations

import http.server
import json
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from ansible_collections.lmfleet.mac.plugins.modules import litellm_deployments

ROLE = Path(__file__).resolve().parents[3] / "roles" / "gateway_deployments"
ANSWERS = {"/health/readiness": {"db": "connected"}, "/v1/model/info": {"data": []}}


class Gateway(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        with server.lock:
            server.inside += 1
            server.most = max(server.most, server.inside)
        time.sleep(1.0)
        with server.lock:
            server.inside -= 1
        body = json.dumps(ANSWERS[self.path]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments):
        """Say nothing."""


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as server:
        server.lock, server.inside, server.most = threading.Lock(), 0, 0
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_deployment_is_declared_as_the_module_takes_it():
    options = yaml.safe_load((ROLE / "meta" / "argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    declared = {
        name: {key: value for key, value in option.items() if key != "description"}
        for name, option in options["gateway_deployments_list"]["options"].items()
    }
    assert declared == {
        name: {key: value for key, value in option.items() if value is not False}
        for name, option in litellm_deployments.DEPLOYMENT.items()
    }


def test_gateways_with_a_database_are_asked_one_after_the_other(controller, tmp_path, server):
    (tmp_path / "master_key").write_text("sk-1\n")
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    variables = {
        **local,
        "gateway_deployments_registry": "api",
        "gateway_deployments_root": str(tmp_path),
        "gateway_deployments_url": f"http://127.0.0.1:{server.server_port}",
    }
    hosts = dict.fromkeys(("gw-1", "gw-2", "gw-3"))
    fleet = {"all": {"vars": variables, "children": {"macs": {"hosts": {}}, "gateways": {"hosts": hosts}}}}
    run = controller(fleet, [{"ansible.builtin.import_role": {"name": "lmfleet.mac.gateway_deployments"}}])
    output = run.communicate(timeout=120)[0]
    assert run.returncode == 0, output
    assert output.count("failed=0") == 3
    assert server.most == 1
