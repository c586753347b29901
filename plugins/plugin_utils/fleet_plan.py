# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet plan: from the values of an inventory to what each host is to run. Pure: no Ansible, no I/O."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from ansible_collections.lmfleet.mac.plugins.module_utils._addresses import EVERYWHERE, url_host
from ansible_collections.lmfleet.mac.plugins.plugin_utils import fleet_routing, load_settings, memory_plan
from ansible_collections.lmfleet.mac.plugins.plugin_utils.model_sources import (
    model_files,
    model_on_disk,
    source_files,
    source_problems,
)
from ansible_collections.lmfleet.mac.plugins.plugin_utils.rollout import amount
from ansible_collections.lmfleet.mac.plugins.plugin_utils.words import some_of

#: The smallest values that make sense.
LEAST = {"lmfleet_memory_reserve_mb": 0, "lmfleet_canary_bake_seconds": 0, "lmfleet_drain_timeout": 1}
# LM Studio's control API takes the first free of these, on loopback: five of them, so five instances.
CONTROL_PORTS = (41343, 52993, 16141, 39414, 22931)
MAX_INSTANCES = len(CONTROL_PORTS)
MAX_COPIES = 16

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
INSTANCE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
# Of characters that need no escaping wherever a token goes, and long enough to be taken out of all that Ansible shows.
API_TOKEN = re.compile(r"[A-Za-z0-9._~+/:=-]{8,}")

#: The status of an instance is published so many ports above its own where nothing else is declared.
STATUS_PORT_OFFSET = 1000


@dataclass
class Host:
    """What the plan needs to know of one host: validated C(lmfleet_*) values and where it can be reached."""

    name: str
    variables: dict[str, Any]
    ansible_host: str | None = None
    gateway: dict[str, Any] | None = None  # port, address, domain of the gateway on this host
    guard: dict[str, Any] | None = None  # metrics port and address, domain of the queue guard on this host
    gpu_memory_limit_mb: int | None = None  # what role mac_host is to set it to
    has_master_key: bool = False  # whether litellm_master_key is set
    tls: dict[str, Any] | None = None  # port, address, domain of the server with TLS on this host; a warning or ""
    by_api: bool = False  # whether the gateway on this host keeps its deployments in a database

    @property
    def address(self) -> str:
        return self.variables.get("lmfleet_address") or self.ansible_host or self.name


@dataclass
class Plan:
    """The outcome: problems, or what each host is to run and every deployment of the fleet; and what may be unwise."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    hosts: dict[str, dict[str, Any]] = field(default_factory=dict)
    deployments: list[dict[str, Any]] = field(default_factory=list)
    model_groups: list[dict[str, Any]] = field(default_factory=list)
    gateways: list[str] = field(default_factory=list)
    token_hosts: list[str] = field(default_factory=list)  # Macs with instances that ask for a token
    model_cache: dict[str, Any] = field(default_factory=dict)


def plan_fleet(hosts: Mapping[str, Host], macs: list[str], gateways: list[str]) -> Plan:
    """Plan a fleet.

    C(hosts) holds every host of the two groups by inventory name; C(macs) and C(gateways) are the groups' members
    in inventory order.
    The plan's C(hosts) and C(deployments) can be used only when C(problems) is empty.
    """
    plan = Plan(gateways=list(gateways))
    for name, host in hosts.items():
        plan.problems.extend(f"{name}: {problem}" for problem in _amount_problems(host.variables))
    if not macs:
        plan.problems.append("inventory: the group macs is empty. Put the Macs that are to serve models into it.")
    if not gateways:
        plan.problems.append(
            "inventory: the group gateways is empty. Put at least one Mac into it; it may be one of the group macs."
        )
    if len(gateways) > 1:
        plan.problems.extend(
            f"{name}: litellm_master_key: is not set. With several gateways each would make a key of its own, and a "
            "client could use one of them only. Put one key into a vault, in the variables of the group gateways."
            for name in gateways
            if not hosts[name].has_master_key
        )
    catalogue = _catalogue(hosts, plan.problems)
    guarded = any(hosts[name].guard for name in gateways)
    for name in hosts:
        host = hosts[name]
        planned = {"instances": [], "models": [], "domain": host.variables["lmfleet_launchd_domain"]}
        planned["guard"] = bool(host.guard)
        declared = host.variables["lmfleet_instances"] if name in macs else []
        plan.problems.extend(f"{name}: {problem}" for problem in _port_problems(host, declared, guarded))
        if name in macs:
            planned["instances"] = _instances(host, catalogue, gateways, guarded, plan.problems)
            plan.token_hosts += [name] if host.variables["lmfleet_api_tokens"] else []
            used = {model["name"] for instance in planned["instances"] for model in instance["models"]}
            drafting = {model["draft"]["name"] for model in _loaded(planned) if model["draft"]}
            planned["models"] = [file for model in sorted(used | drafting) for file in _files(model, catalogue[model])]
        planned["ports"] = _ports(host, planned["instances"])
        planned["memory"] = _memory(host, planned, catalogue)
        planned["domains"] = sorted({port["domain"] for port in planned["ports"]})
        planned["prune_models"] = host.variables["lmfleet_prune_models"]
        plan.hosts[name] = planned
    _route(plan, hosts, macs, catalogue)
    plan.model_cache = _model_cache(hosts, macs, plan)
    plan.problems.extend(_catalog_problems(plan))
    for deployment_id, count in Counter(deployment["id"] for deployment in plan.deployments).items():
        if count > 1:
            where = ", ".join(
                f"{d['host']}/{d['instance']}/{d['model']}" for d in plan.deployments if d["id"] == deployment_id
            )
            plan.problems.append(
                f"deployment id {deployment_id} would be used {count} times ({where}). "
                "Rename one of the instances or models."
            )
    plan.warnings = _warnings(plan)
    plan.warnings += [
        f"{name}: {host.tls['warning']}." for name, host in hosts.items() if host.tls and host.tls["warning"]
    ]
    return plan


def _amount_problems(variables: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the numbers of a host that stand for themselves."""
    for variable, least in LEAST.items():
        if variables[variable] < least:
            yield f"{variable} must be at least {least}."
    for variable, least in (("lmfleet_batch", 1), ("lmfleet_min_capacity", 0)):
        if variables.get(variable):
            try:
                amount(variables[variable], 1, least)
            except ValueError as error:
                yield f"{variable}: {error}."


def _files(name: str, model: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the files of a model. How large one of the catalogue is, nobody can be asked beforehand."""
    *others, last = model_files(name, model["source"])
    size = (model.get("memory") or {}).get("weights_mb")
    return [*others, {**last, "size": size << 20} if size and "catalog" in last else last]


def _catalog_problems(plan: Plan) -> Iterator[str]:
    """Yield on which Macs no control port is left for the LM Studio that fetches from the catalogue."""
    for host, planned in plan.hosts.items():
        fetched = planned["models"] if host != plan.model_cache.get("host") else plan.model_cache["models"]
        names = sorted({file["name"] for file in fetched if "catalog" in file})
        if names and len(planned["instances"]) == MAX_INSTANCES:
            yield (
                f"{host}: lmfleet_instances: {MAX_INSTANCES} instances leave no control port for the LM Studio that "
                f"fetches {some_of(names)} from the catalogue. Declare one instance less, have a Mac with fewer fetch "
                "for all (lmfleet_model_cache), or give another source."
            )


def _loaded(planned: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every loaded copy of a model on a host."""
    return [model for instance in planned["instances"] for model in instance["models"]]


def _warnings(plan: Plan) -> list[str]:
    """Return what may be unwise, each said once with all the places it holds for."""
    places: dict[tuple[str, str], list[str]] = {}
    for host, planned in plan.hosts.items():
        for instance in planned["instances"]:
            for model in instance["models"]:
                for doubt in load_settings.doubts(model_format(model["path"]), model["load"], instance["runtimes"]):
                    where = places.setdefault((model["name"], doubt), [])
                    if f"{host}/{instance['name']}" not in where:
                        where.append(f"{host}/{instance['name']}")
    return [f"model {name} on {some_of(where)}: {doubt}" for (name, doubt), where in places.items()]


def model_format(path: str) -> str:
    """Return the format of a model by its path on a Mac: an MLX model is a folder, or one file of weights."""
    return load_settings.GGUF if path.lower().endswith(".gguf") else load_settings.MLX


def _route(plan: Plan, hosts: Mapping[str, Host], macs: list[str], catalogue: Mapping[str, Any]) -> None:
    deployments = [
        fleet_routing.deployment(host, instance, model, catalogue[model["name"]])
        for host in macs
        if host in plan.hosts
        for instance in plan.hosts[host]["instances"]
        for model in instance["models"]
    ]
    plan.deployments = fleet_routing.with_orders(deployments)
    for name in plan.gateways:
        local = name if hosts[name].variables["lmfleet_local_first"] else None
        plan.hosts[name]["deployments"] = fleet_routing.with_orders(deployments, local)
    plan.model_groups = fleet_routing.model_groups(deployments, catalogue)
    declared = {name: hosts[name].variables["lmfleet_instances"] for name in macs if name in hosts}
    known = next(iter(hosts.values())).variables["lmfleet_models"] if hosts else {}
    served = {group["name"] for group in plan.model_groups}
    plan.problems.extend(fleet_routing.group_problems(served, catalogue, known))
    by_api = [name for name in plan.gateways if hosts[name].by_api]
    local_first = [name for name in by_api if hosts[name].variables["lmfleet_local_first"]]
    plan.problems.extend(fleet_routing.database_problems(by_api, local_first, plan.model_groups))
    isolated = any(instance["embeddings_only"] for instances in declared.values() for instance in instances)
    for name, instances in declared.items():
        plan.problems.extend(fleet_routing.isolation_problems(name, instances, catalogue, isolated))


def _catalogue(hosts: Mapping[str, Host], problems: list[str]) -> dict[str, Any]:
    """Return the models that are sound, after reporting those that are not."""
    declared = {name: host.variables["lmfleet_models"] for name, host in hosts.items()}
    first = next(iter(declared), None)
    catalogue = declared.get(first) or {}
    different = [name for name, models in declared.items() if models != catalogue]
    if different:
        problems.append(
            f"{', '.join(different)}: lmfleet_models differs from that of {first}. "
            "The catalogue belongs to the whole fleet: declare it once, in group_vars/all."
        )
    keys = Counter(_lmstudio_key(name) for name in catalogue)
    sound = {}
    for name, model in catalogue.items():
        found = [*_model_problems(name, model), *_draft_problems(name, model.get("load") or {}, catalogue)]
        if keys[_lmstudio_key(name)] > 1:
            found.append(
                "has a twin that differs only in case or by -gguf, which LM Studio cannot tell apart: rename one."
            )
        problems.extend(f"lmfleet_models.{name}: {problem}" for problem in found)
        # What the schema has found wrong with a model is reported already.
        source = model.get("source") or {}
        checksums = [file.get("sha256") and file.get("file") for file in source.get("files") or []]
        if not found and (source.get("sha256") or (checksums and all(checksums))):
            sound[name] = model
    return sound


def _lmstudio_key(name: str) -> str:
    """Return what LM Studio makes of the name of a model's folder."""
    return name.casefold().removesuffix("-gguf")


def _model_problems(name: str, model: Mapping[str, Any]):
    if not MODEL_NAME.fullmatch(name):
        yield (
            "a name has letters, digits, '.', '_' and '-', starts with a letter or digit, "
            "and has at most 64 characters."
        )
    source = model.get("source")
    if source:
        yield from source_problems(source)
    yield from load_settings.problems(model["type"], _format(source), load_settings.merged(model.get("load")))
    yield from _memory_problems({key: value for key, value in (model.get("memory") or {}).items() if value is not None})


def _memory_problems(memory: Mapping[str, int]):
    for key, value in memory.items():
        least = 0 if key == "runtime_mb" else 1
        if value < least:
            yield f"memory.{key} must be at least {least}, not {value}."
    missing = [key for key in memory_plan.FIGURES if key not in memory]
    if 0 < len(missing) < len(memory_plan.FIGURES):
        yield f"memory: {', '.join(memory_plan.FIGURES)} belong together, and {' and '.join(missing)} is missing."


def _format(source: Mapping[str, Any] | None) -> str | None:
    names = source_files(source or {})
    gguf = [name for name in names if model_format(name) == load_settings.GGUF]
    return model_format((gguf or names)[0]) if names else None


def _draft_problems(name: str, load: Mapping[str, Any], catalogue: Mapping[str, Any]):
    draft = load.get("draft_model")
    if not draft:
        return
    if draft == name:
        yield "load.draft_model must be another, smaller model than the one it drafts for."
    elif draft not in catalogue:
        yield (
            f"load.draft_model {draft!r} is not a model of lmfleet_models. "
            f"It has: {', '.join(sorted(catalogue)) or 'none'}."
        )
    elif catalogue[draft]["type"] != "llm":
        yield f"load.draft_model {draft} is of type {catalogue[draft]['type']}. It must be an llm."


def _instances(
    host: Host, catalogue: Mapping[str, Any], gateways: list[str], guarded: bool, problems: list[str]
) -> list[dict[str, Any]]:
    def report(where: str, what: str) -> None:
        problems.append(f"{host.name}: {where}: {what}")

    declared = host.variables["lmfleet_instances"]
    if not declared:
        report(
            "lmfleet_instances",
            "a host of the group macs needs at least one instance. Declare one, or take the host out of the group.",
        )
    if len(declared) > MAX_INSTANCES:
        report(
            "lmfleet_instances",
            f"{len(declared)} instances, but a Mac can run at most {MAX_INSTANCES}: "
            f"LM Studio has {MAX_INSTANCES} control ports. Load several models on one instead.",
        )
    bind_address = _bind_address(host, gateways, report)
    _token_problems(host, declared, report)
    for name, count in Counter(instance["name"] for instance in declared).items():
        if count > 1:
            report("lmfleet_instances", f"{count} instances are named {name}. Give each a name of its own.")
    planned = []
    for instance in declared:
        where = f"lmfleet_instances ({instance['name']})"
        if not INSTANCE_NAME.fullmatch(instance["name"] or ""):
            report(
                where,
                "a name has lower-case letters, digits and '-', starts with a letter or digit, "
                "and has at most 32 characters.",
            )
        if not instance["models"]:
            report(where, "serves no model. Name at least one of lmfleet_models.")
        models = _models_of_instance(host, instance, catalogue, lambda what, where=where: report(where, what))
        # A server that listens everywhere is asked at loopback from its own Mac.
        local = "127.0.0.1" if bind_address in EVERYWHERE else bind_address
        reached = bind_address if _is_loopback(bind_address) else host.address
        status_port = _status_port(instance) if guarded else None
        planned.append(
            {
                "name": instance["name"],
                "port": instance["port"],
                "address": bind_address,
                "url": f"http://{url_host(local)}:{instance['port']}",
                "api_base": f"http://{url_host(reached)}:{instance['port']}/v1",
                "status_port": status_port,
                "status_url": f"http://{url_host(reached)}:{status_port}/status" if status_port else None,
                "models": models,
                "runtimes": _runtimes(instance, lambda what, where=where: report(where, what)),
            }
        )
    return planned


def _runtimes(instance: Mapping[str, Any], report) -> dict[str, str]:
    """Return the runtimes of an instance; a version without quotes may have lost a zero, so it is refused."""
    runtimes = instance.get("runtimes") or {}
    for name, version in runtimes.items():
        if not isinstance(version, str) or "@" in f"{name}{version}" or not version.strip():
            report(f'runtimes: the version of {name} must be text in quotes, such as "2.27.1", not {version!r}.')
    return dict(runtimes)


def _models_of_instance(
    host: Host, instance: Mapping[str, Any], catalogue: Mapping[str, Any], report
) -> list[dict[str, Any]]:
    loaded = []
    for name, count in Counter(entry["name"] for entry in instance["models"]).items():
        if count > 1:
            report(f"names the model {name} {count} times. Name it once, with copies: {count}.")
    for entry in instance["models"]:
        model = catalogue.get(entry["name"])
        if model is None:
            declared = host.variables["lmfleet_models"] or {}
            if entry["name"] not in declared:
                report(
                    f"serves the unknown model {entry['name']!r}. "
                    f"lmfleet_models has: {', '.join(sorted(declared)) or 'none'}."
                )
            continue
        if not 1 <= entry["copies"] <= MAX_COPIES:
            report(f"{entry['name']}: copies must be from 1 to {MAX_COPIES}, not {entry['copies']}.")
            continue
        file = model_on_disk(entry["name"], model["source"])
        load = load_settings.merged(model["load"], entry["load"])
        found = [
            *load_settings.problems(model["type"], model_format(file["path"]), load),
            *_draft_problems(entry["name"], load, host.variables["lmfleet_models"]),
        ]
        for problem in found if any(value is not None for value in (entry["load"] or {}).values()) else ():
            report(f"{entry['name']}: {problem}")
        draft = catalogue.get(load["draft_model"]) if load.get("draft_simple") else None
        for problem in fleet_routing.entry_problems(entry):
            report(problem)
        for copy in range(1, entry["copies"] + 1):
            suffix = "" if copy == 1 else f"-{copy}"
            loaded.append(
                {
                    "name": entry["name"],
                    "identifier": f"{entry['name']}{suffix}",
                    "deployment_id": f"{host.name}-{instance['name']}-{entry['name']}{suffix}",
                    "type": model["type"],
                    "load": load,
                    "path": file["path"],
                    "sha256": file["sha256"],
                    "draft": {"name": load["draft_model"], **model_on_disk(load["draft_model"], draft["source"])}
                    if draft
                    else None,
                    "weight": entry["weight"],
                    "order": entry["order"],
                }
            )
    for identifier, count in Counter(model["identifier"] for model in loaded).items():
        if count > 1:
            report(
                f"would load two models as {identifier}: the second copy of a model gets the suffix -2. "
                "Rename one of the models."
            )
    return loaded


def _bind_address(host: Host, gateways: list[str], report) -> str:
    only_gateway = gateways == [host.name]
    bind_address = host.variables.get("lmfleet_bind_address")
    if bind_address is None:
        if only_gateway:
            return "127.0.0.1"
        bind_address = host.address
        if not _is_address(bind_address):
            report(
                "lmfleet_bind_address",
                f"is not set, and lmfleet_address {bind_address!r} is a name, which a server cannot be bound to. "
                "Set it to an address of this Mac in a private network (or 0.0.0.0 to listen on all).",
            )
    elif not _is_address(bind_address):
        report("lmfleet_bind_address", f"must be an IP address, not {bind_address!r}.")
    elif _is_loopback(bind_address) and not only_gateway:
        report(
            "lmfleet_bind_address",
            f"{bind_address} cannot be reached by the gateways {', '.join(gateways)}. "
            "Set an address of a private network.",
        )
    return bind_address


def _status_port(instance: Mapping[str, Any]) -> int | None:
    """Return the port of an instance's status; None where its own port is no port either."""
    if instance["status_port"] is not None:
        return instance["status_port"]
    return instance["port"] + STATUS_PORT_OFFSET if isinstance(instance["port"], int) else None


def _port_problems(host: Host, declared: list[Mapping[str, Any]], guarded: bool) -> Iterator[str]:
    """Yield what is wrong with the ports of a host, beginning with the variable that says so."""
    wanted = [(instance["port"], "lmfleet_instances", f"instance {instance['name']}") for instance in declared]
    wanted += [
        (_status_port(instance), "lmfleet_instances", f"the status of instance {instance['name']} (status_port)")
        for instance in declared
        if guarded
    ]
    for listening, variable, use in (
        (host.gateway, "litellm_port", "the gateway"),
        (host.guard, "queue_guard_metrics_port", "the queue guard"),
        (host.tls, "gateway_tls_port", "the gateway with TLS"),
    ):
        if listening:
            wanted.append((listening["port"], variable, f"{use} ({variable})"))
    users: dict[int, list[tuple[str, str]]] = {}
    for port, variable, use in wanted:
        if isinstance(port, int):
            users.setdefault(port, []).append((variable, use))
    for port, found in users.items():
        variable, use = found[0]
        if len(found) > 1:
            uses = " and ".join(use for _variable, use in found)
            yield f"{variable}: port {port} is used by {uses}. Give each a port of its own."
        # Nothing runs as root. macOS lets anybody listen on 443, on all addresses at once only.
        by_tls = host.tls if variable == "gateway_tls_port" else None
        least = 1 if by_tls and by_tls["address"] in EVERYWHERE else 1024
        if not least <= port <= 65535:
            hint = " A lower one needs gateway_tls_address: 0.0.0.0." if by_tls and 1 <= port < least else ""
            yield f"{variable}: port {port} of {use} must be from {least} to 65535.{hint}"
        if declared and port in CONTROL_PORTS:
            yield f"{variable}: port {port} of {use} is one of LM Studio's control ports. Choose another."


def _token_problems(host: Host, declared: list[Mapping[str, Any]], report) -> None:
    names = [instance["name"] for instance in declared]
    for name, token in host.variables["lmfleet_api_tokens"].items():
        where = f"lmfleet_api_tokens ({name})"
        if name not in names:
            report(where, f"there is no such instance here. lmfleet_instances has: {', '.join(names) or 'none'}.")
        elif not isinstance(token, str) or not API_TOKEN.fullmatch(token):
            report(where, "a token has at least 8 letters, digits and any of . _ ~ + / : = - such as sk-lm-….")


def _ports(host: Host, instances: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what will be listened on, and by which launchd job, in the form that role mac_host checks."""
    ports = [
        {
            "port": instance["port"],
            "address": instance["address"],
            "label": f"lmfleet.instance.{instance['name']}",
            "domain": host.variables["lmfleet_launchd_domain"],
            "use": f"instance {instance['name']}",
            "status": f"{_root(host)}/instances/{instance['name']}/status.json",
        }
        for instance in instances
    ]
    ports += [
        {**port, "port": instance["status_port"], "use": f"the status of instance {instance['name']}"}
        for port, instance in zip(ports, instances, strict=True)
        if instance["status_port"]
    ]
    if host.gateway:
        ports.append({**host.gateway, "label": "lmfleet.gateway", "use": "the gateway"})
    if host.guard:
        ports.append({**host.guard, "label": "lmfleet.queue_guard", "use": "the metrics of the queue guard"})
    if host.tls:
        listening = {name: host.tls[name] for name in ("port", "address", "domain")}
        ports.append({**listening, "label": "lmfleet.gateway_tls", "use": "the gateway with TLS"})
    return ports


def _memory(host: Host, planned: Mapping[str, Any], catalogue: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is declared of memory, and what the Mac is to be asked for, in the form that role mac_host takes."""
    wanted = None
    loaded = _loaded(planned)
    used = {
        model["name"]: model["path"] for model in [*loaded, *(model["draft"] for model in loaded if model["draft"])]
    }
    if planned["instances"]:
        wanted = {
            "root": _root(host),
            "files": sorted(used.values()),
            "settings": list(memory_plan.SETTINGS_THAT_COUNT),
            "instances": [
                {
                    "name": instance["name"],
                    "models": [
                        {
                            "identifier": model["identifier"],
                            "path": model["path"],
                            "load": memory_plan.asked(model["load"]),
                        }
                        for model in instance["models"]
                    ],
                }
                for instance in planned["instances"]
            ],
        }
    return {
        "policy": host.variables["lmfleet_memory_policy"],
        "reserve_mb": host.variables["lmfleet_memory_reserve_mb"],
        "gpu_limit_mb": host.gpu_memory_limit_mb,
        "declared": {name: catalogue[name].get("memory") or {} for name in sorted(used)},
        "wanted": wanted,
    }


def _root(host: Host) -> str:
    return host.variables["lmfleet_root"] or "~/.lmfleet"


def _model_cache(hosts: Mapping[str, Host], macs: list[str], plan: Plan) -> dict[str, Any]:
    """Return what the Mac that serves models to the others needs, and have the others fetch from it."""
    wanted = {name: hosts[name].variables["lmfleet_model_cache"] or "" for name in macs if name in hosts}
    caches = sorted(set(wanted.values()))
    if caches in ([], [""]):
        return {}
    if len(caches) > 1:
        told = ", ".join(f"{name or 'none'} on {' '.join(h for h in wanted if wanted[h] == name)}" for name in caches)
        plan.problems.append(f"lmfleet_model_cache differs ({told}). Declare it once, in group_vars/all.")
        return {}
    name = caches[0]
    if name not in wanted:
        plan.problems.append(f"lmfleet_model_cache: {name} is not in the group macs, which has: {', '.join(wanted)}.")
        return {}
    host, port = hosts[name], hosts[name].variables["lmfleet_model_cache_port"]
    bound = host.variables["lmfleet_bind_address"]
    address = bound if bound and not _is_loopback(bound) else host.address
    if not _is_address(address) or (_is_loopback(address) and len(macs) > 1):
        plan.problems.append(
            f"lmfleet_model_cache: {name} would serve its files at {address}, which is no address that the other "
            f"Macs reach. Set lmfleet_address or lmfleet_bind_address of {name} to an IP address."
        )
    users = [used["use"] for used in plan.hosts[name]["ports"] if used["port"] == port]
    if users or port in CONTROL_PORTS or not 1024 <= port <= 65535:
        why = f"is used by {users[0]}" if users else "must be from 1024 to 65535 and no control port of LM Studio"
        plan.problems.append(f"{name}: lmfleet_model_cache_port: {port} {why}. Choose another.")
    domain = plan.hosts[name]["domain"]
    label, use = "lmfleet.model-cache", "the model cache (lmfleet_model_cache_port)"
    plan.hosts[name]["ports"].append({"port": port, "address": address, "label": label, "domain": domain, "use": use})
    files = {file["path"]: file for other in wanted for file in plan.hosts[other]["models"]}
    for other in wanted:
        if other != name:
            plan.hosts[other]["models"] = [
                {
                    **{key: file[key] for key in ("name", "path", "sha256")},
                    "url": f"http://{url_host(host.address)}:{port}/{quote(file['path'])}",
                }
                for file in plan.hosts[other]["models"]
            ]
    return {
        "host": name,
        "root": _root(host),
        "address": address,
        "port": port,
        "domain": domain,
        "models": list(files.values()),
    }


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_loopback(text: str) -> bool:
    return _is_address(text) and ipaddress.ip_address(text).is_loopback
