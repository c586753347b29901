# SPDX-License-Identifier: GPL-3.0-or-later
"""What the registry of a gateway becomes, and when its workers have followed."""

from __future__ import annotations

import json
import os
import stat

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _registry as registry

import registry_documents

NOW = 1000.0
EMPTY = registry.State(0, None, None, None, {})


def deployment(name, **extra):
    return {"id": name, "model_group": "chat", "model": "m", "api_base": "http://mac:1234/v1", **extra}


def state_with(*names, generation=4, pauses=None, routing="round_robin"):
    entries = {name: registry.entry(deployment(name)) for name in names}
    held = {
        owner: {"generation": 3, "paused": {i: {"reason": "r", "since": 1.0} for i in ids}}
        for owner, ids in (pauses or {}).items()
    }
    return registry.State(generation, routing, entries, generation, held)


def plan(deployments, state, purge=True, routing=None, asked=None, groups=None, **kept):
    wanted = None if deployments is None else registry.wanted_entries(deployments, purge, state, **kept)
    return registry.plan(wanted, groups, routing, asked, state, NOW)


def worker(**changes):
    values = {
        "pid": 1,
        "age": 1.0,
        "generation": 4,
        "paused_generations": {},
        "workers": 1,
        "rejected": {},
        "error": None,
        "deployments": ["a"],
        "in_flight": {},
        "started_at": 0.0,
        "outcomes": {},
        "run": "1",
    }
    return registry.Worker(**{**values, **changes})


def pausing(owner="operator", pause=(), resume=(), **more):
    return registry.Pausing(owner, list(pause), list(resume), **{"reason": "why", **more})


def on(host, *names, instance="a"):
    return {name: registry.entry(deployment(name, host=host, instance=instance)) for name in names}


class TestEntry:
    def test_it_is_what_litellm_expects(self):
        entry = registry.entry(deployment("a", weight=2.0, timeout=None, host="mac-1", mode="embedding"))
        assert entry == {
            "model_name": "chat",
            "litellm_params": {"model": "openai/m", "api_base": "http://mac:1234/v1", "api_key": "none", "weight": 2.0},
            "model_info": {"id": "a", "mode": "embedding", "host": "mac-1"},
        }

    def test_limits_for_a_minute_are_not_among_what_litellm_limits_requests_in_flight_by(self):
        entry = registry.entry(deployment("a", rpm=30, tpm=9000))
        assert entry["model_info"] == {"id": "a", "mode": "chat", "rpm": 30, "tpm": 9000}
        assert not entry["litellm_params"].keys() & {"rpm", "tpm"}
        assert "rpm 0, which must be at least 1" in registry.deployment_problems([deployment("a", rpm=0)])[0]

    def test_a_token_is_passed_on(self):
        assert registry.entry(deployment("a", api_key="t"))["litellm_params"]["api_key"] == "t"


class TestPlan:
    def test_the_first_time_everything_is_new(self):
        planned = plan([deployment("b"), deployment("a")], EMPTY)
        document = planned.files["deployments.json"]
        assert [entry["model_info"]["id"] for entry in document["deployments"]] == ["a", "b"]
        assert (document["format"], document["generation"], document["routing"]) == (1, 1, "round_robin")
        assert planned.added == ["a", "b"]

    def test_what_is_so_already_changes_nothing(self):
        planned = plan([deployment("a"), deployment("b")], state_with("a", "b"))
        assert planned.files == {}
        assert planned.state.generation == 4

    def test_an_empty_declaration_makes_an_empty_file_once(self):
        assert plan([], EMPTY).files["deployments.json"]["deployments"] == []
        assert plan([], state_with()).files == {}

    def test_a_change_gets_the_next_generation(self):
        planned = plan([deployment("a", model="other"), deployment("b")], state_with("a", "b"))
        assert (planned.changed, planned.added, planned.removed) == (["a"], [], [])
        assert planned.files["deployments.json"]["generation"] == 5
        assert planned.state.deployments_generation == 5

    def test_purge_removes_what_is_not_declared(self):
        assert plan([deployment("a")], state_with("a", "b")).removed == ["b"]
        assert plan([deployment("a")], state_with("a", "b"), purge=False).files == {}

    def test_what_a_kept_mac_has_stays_as_it_is_declared_or_not(self):
        state = state_with("a", "c", pauses={"rollout": ["a"]})
        state = state._replace(deployments={**state.deployments, **on("mac-1", "b"), **on("mac-2", "d")})
        planned = plan([deployment("a")], state, keep_hosts=["mac-1"])
        assert (planned.added, planned.changed, planned.removed) == ([], [], ["c", "d"])

    def test_a_part_is_told_without_orders_that_do_not_fit_the_rest(self):
        ordered = [deployment("a", order=1, weight=2.0), deployment("new", order=2)]
        told = plan(ordered, state_with("a", "b"), purge=False, keep_orders=True)
        params = {name: entry["litellm_params"] for name, entry in told.state.deployments.items()}
        assert [params[name].get("order") for name in ("a", "b", "new")] == [None, None, None]
        assert params["a"]["weight"] == 2.0
        # All of it is told later, and then they come.
        whole = plan([*ordered, deployment("b", order=1)], told.state)
        assert registry.group_problems([], whole.state.deployments) == []
        # Then to have none any more has to wait as well.
        bare = [deployment("a", api_base="http://other:1/v1"), deployment("newer")]
        told = plan(bare, whole.state, purge=False, keep_orders=True)
        params = {name: entry["litellm_params"] for name, entry in told.state.deployments.items()}
        assert [params[name].get("order") for name in ("a", "b", "new", "newer")] == [1, 1, 2, 2]
        assert told.changed == ["a"]
        assert registry.group_problems([], told.state.deployments) == []

    def test_a_group_that_is_new_has_its_orders_at_once(self):
        told = plan([deployment("x", model_group="new", order=2)], state_with("a"), purge=False, keep_orders=True)
        assert told.state.deployments["x"]["litellm_params"]["order"] == 2

    def test_absent_removes_without_purge(self):
        gone = {"id": "b", "state": "absent"}
        assert plan([gone], state_with("a", "b"), purge=False).removed == ["b"]

    def test_what_is_only_named_stays_as_it_is(self):
        assert plan([{"id": "a"}], state_with("a", "b"), purge=False).files == {}
        assert plan([{"id": "a"}], state_with("a", "b")).removed == ["b"]

    def test_no_declaration_leaves_the_deployments_alone(self):
        assert plan(None, state_with("a")).files == {}
        assert plan(None, EMPTY).files == {}

    def test_fallbacks_change_alone(self):
        groups = registry.wanted_groups([{"name": "chat", "fallbacks": ["other"]}, {"name": "other", "fallbacks": []}])
        assert groups == {"chat": {"fallbacks": ["other"]}}
        planned = plan(None, state_with("a"), groups=groups)
        assert planned.files["deployments.json"]["groups"] == groups
        again = registry.plan(None, groups, None, None, planned.state, NOW)
        kept = registry.plan(None, None, None, None, planned.state, NOW)
        assert again.files == kept.files == {}
        assert list(registry.plan(None, {}, None, None, planned.state, NOW).files) == ["deployments.json"]

    def test_routing_changes_alone(self):
        planned = plan(None, state_with("a"), routing="shuffle")
        assert planned.files["deployments.json"]["routing"] == "shuffle"
        assert plan(None, state_with("a", routing="shuffle")).files == {}


class TestPauses:
    def after(self, asked, *names, **pauses):
        planned = plan(None, state_with(*names, pauses=pauses), asked=asked)
        return planned, planned.files.get(f"paused/{asked.owner}.json", {}).get("paused")

    def test_exactly_these(self):
        planned, paused = self.after(pausing(pause=["b", "c"], only=True, reason=None), *"abc", operator=["a", "b"])
        assert paused == {"b": {"reason": "r", "since": 1.0}, "c": {"reason": "", "since": NOW}}
        assert list(planned.files) == ["paused/operator.json"]

    def test_more_and_fewer(self):
        planned, paused = self.after(pausing("rollout", pause=["b"], resume=["a"]), *"abc", rollout=["a", "c"])
        assert sorted(paused) == ["b", "c"]
        assert planned.resumed == {"a": NOW - 1.0}

    def test_each_owner_has_its_own(self):
        planned, paused = self.after(pausing("rollout", only=True), "a", operator=["a"])
        assert paused is None
        assert list(registry.paused_by(planned.state, NOW)["a"]) == ["operator"]

    def test_what_is_gone_is_paused_no_more(self):
        state = state_with("a", "b", pauses={"rollout": ["a", "gone"], "operator": ["gone"]})
        asked = registry.without_unknown(pausing("rollout"), ["a"], state)
        planned = plan([deployment("a")], state, asked=asked)
        assert list(planned.files["paused/rollout.json"]["paused"]) == ["a"]
        assert list(planned.state.pauses["operator"]["paused"]) == ["gone"]
        assert registry.without_unknown(pausing("guard"), ["a"], state).resume == []

    def test_the_same_again_changes_nothing(self):
        assert self.after(pausing("guard", pause=["a"], reason="r"), "a", guard=["a"])[1] is None

    def test_a_new_reason_is_told(self):
        assert self.after(pausing(pause=["a"]), "a", operator=["a"])[1] == {"a": {"reason": "why", "since": 1.0}}

    def test_an_end_counts_from_when_it_was_asked_for(self):
        planned, paused = self.after(pausing(pause=["a"], expire_after=60), "a", operator=["a"])
        assert paused == {"a": {"reason": "why", "since": 1.0, "until": NOW + 60, "expire_after": 60}}
        again = registry.plan(None, None, None, pausing(pause=["a"], expire_after=60), planned.state, NOW + 30)
        assert again.files == {}
        other = registry.plan(None, None, None, pausing(pause=["a"], expire_after=40), planned.state, NOW + 30)
        assert other.state.pauses["operator"]["paused"]["a"]["until"] == NOW + 70

    def test_an_end_stays_and_goes(self):
        planned, paused = self.after(pausing(pause=["a"], expire_after=60), "a")
        assert paused["a"]["until"] == NOW + 60
        again = registry.plan(None, None, None, pausing(pause=["a"], expire_after=60), planned.state, NOW + 30)
        assert again.files == {}
        kept = registry.plan(None, None, None, pausing(pause=["a"]), planned.state, NOW + 30)
        assert kept.files == {}
        forever = registry.plan(None, None, None, pausing(pause=["a"], expire_after=0), planned.state, NOW + 30)
        assert forever.files["paused/operator.json"]["paused"] == {"a": {"reason": "why", "since": NOW}}

    def test_what_has_ended_is_none(self):
        planned, __ = self.after(pausing(pause=["a"], expire_after=60), "a")
        assert registry.paused_by(planned.state, NOW + 59) != {}
        assert registry.paused_by(planned.state, NOW + 61) == {}
        assert registry.plan(None, None, None, pausing(resume=["a"]), planned.state, NOW + 61).files == {}
        again = registry.plan(None, None, None, pausing(pause=["a"], expire_after=60), planned.state, NOW + 61)
        assert again.files["paused/operator.json"]["paused"]["a"]["since"] == NOW + 61

    def test_a_group_gets_traffic_when_one_of_its_deployments_does(self):
        def groups(**pauses):
            return registry.groups_without_traffic(state_with("a", "b", pauses=pauses), NOW)

        assert groups(operator=["a"]) == []
        assert groups(operator=["a"], rollout=["b"]) == ["chat"]
        assert groups(guard=["a", "b"]) == []


class TestProblems:
    def problems(self, named, state, asked=None):
        return registry.fleet_problems(named, state.deployments, asked, state)

    def test_an_id_twice(self):
        problems = registry.deployment_problems([deployment("a"), deployment("a"), deployment("b")])
        assert len(problems) == 1
        assert "a is used 2 times" in problems[0]

    @pytest.mark.parametrize("key", ["model_group", "model", "api_base"])
    def test_something_missing(self, key):
        assert f"no {key}" in registry.deployment_problems([deployment("a", **{key: ""})])[0]
        assert registry.deployment_problems([{"id": "a", "state": "absent"}, {"id": "b"}]) == []

    def test_a_group_without_a_deployment(self):
        found = registry.group_problems([{"name": "chat"}, {"name": "embed"}], state_with("a").deployments)
        assert len(found) == 1
        assert "model group embed has no deployment" in found[0]

    @pytest.mark.parametrize(
        ("others", "message"),
        [
            (["chat"], "has itself among its"),
            (["nobody"], "has nobody among its {key}, which has no deployment"),
            (["embed"], "has embed among its {key}, which does something else"),
            (["other"], None),
        ],
    )
    @pytest.mark.parametrize("key", ["fallbacks", "context_window_fallbacks"])
    def test_fallbacks_that_cannot_be(self, key, others, message):
        declared = [deployment("a"), deployment("b", model_group="other")]
        declared.append(deployment("e", model_group="embed", mode="embedding"))
        after = {d["id"]: registry.entry(d) for d in declared}
        found = registry.group_problems([{"name": "chat", key: others}], after)
        assert len(found) == bool(message)
        assert not message or message.format(key=key) in found[0]

    def test_only_groups_that_have_a_deployment_are_left_where_others_may_still_come(self):
        groups = [{"name": "chat", "fallbacks": ["big", "small"]}, {"name": "big", "fallbacks": []}]
        after = {name: registry.entry(deployment(name, model_group=name)) for name in ("chat", "small")}
        left = registry.groups_there(groups, after)
        assert left == [{"name": "chat", "fallbacks": ["small"], "context_window_fallbacks": []}]
        assert registry.group_problems(left, after) == []

    def test_a_group_does_one_thing(self):
        after = {d["id"]: registry.entry(d) for d in (deployment("a"), deployment("b", mode="embedding"))}
        assert "has chat and embedding deployments" in registry.group_problems([], after)[0]

    def test_an_id_that_is_a_group(self):
        state = state_with()._replace(deployments={"chat": registry.entry(deployment("chat"))})
        assert "also the name of a model group" in self.problems([], state)[0]

    def test_the_unknown(self):
        found = self.problems([{"id": "a", "state": "paused"}, {"id": "z", "state": "present"}], state_with("a"))
        assert len(found) == 1
        assert found[0].startswith("there is no deployment z")
        assert self.problems([{"id": "z", "state": "absent"}], state_with("a")) == []


class TestPausesOfWhatComesAndGoes:
    def test_a_pause_of_a_roll_out_goes_with_its_deployment_and_that_of_an_operator_stays(self):
        before = state_with("a", "b", pauses={"rollout": ["a", "b"], "operator": ["a"]})
        planned = plan([deployment("b")], before)
        assert set(planned.files) == {"deployments.json", "paused/rollout.json"}
        assert set(planned.state.pauses["rollout"]["paused"]) == {"b"}
        assert set(planned.state.pauses["operator"]["paused"]) == {"a"}
        assert set(planned.interim["paused/rollout.json"]["paused"]) == {"a", "b"}, "it goes before its pause"
        assert plan([deployment("b")], planned.state).files == {}

    @pytest.mark.parametrize(
        ("place", "held"),
        [
            ({"host": "m", "instance": "new"}, False),
            ({"host": "m", "instance": "a"}, True),
            ({"host": "other", "instance": "a"}, False),
            ({}, False),
        ],
    )
    def test_what_is_new_on_an_instance_that_is_drained_is_paused_too(self, place, held):
        before = state_with(pauses={"operator": ["a"]})._replace(
            deployments={**on("m", "a"), **on("m", "b", instance="b")}
        )
        planned = plan([deployment("c", **place)], before, purge=False)
        assert ("c" in planned.state.pauses["operator"]["paused"]) == held
        assert ("paused/operator.json" in planned.interim) == held, "it is paused before it is there"

    def test_on_a_mac_that_is_drained_an_instance_of_another_name_is_paused_as_long(self):
        before = state_with(pauses={"operator": ["a", "b"]})._replace(deployments=on("m", "a", "b"))
        before.pauses["operator"]["paused"]["a"]["until"] = NOW + 60
        new = [deployment("c", host="m", instance="new")]
        planned = plan(new, before)
        assert planned.state.pauses["operator"]["paused"]["c"] == {"reason": "r", "since": 1.0}
        before.pauses["operator"]["paused"]["b"]["until"] = NOW + 90
        assert plan(new, before).state.pauses["operator"]["paused"]["c"]["until"] == NOW + 90
        before.pauses["operator"]["paused"]["b"]["until"] = NOW - 1
        assert "c" not in plan(new, before).state.pauses["operator"]["paused"], "the drain of b is over"

    def test_who_is_the_operator_says_what_is_paused(self):
        before = state_with(pauses={"operator": ["a"]})._replace(deployments=on("m", "a"))
        planned = plan([deployment("c", host="m", instance="a")], before, asked=pausing(resume=["c"]))
        assert "c" not in planned.state.pauses["operator"]["paused"]

    def test_places_are_told_of_what_has_one(self):
        assert registry.places({**on("m", "a"), "b": registry.entry(deployment("b"))}) == {
            "a": {"host": "m", "instance": "a"}
        }


class TestWaiting:
    def test_nobody(self):
        assert registry.waiting_for([], state_with("a"), None) == "1 of the gateway's workers to report, and 0 did"

    def test_all_have_applied(self):
        assert registry.waiting_for([worker(), worker(pid=2)], state_with("a"), 2) == ""

    def test_as_many_as_they_say(self):
        assert "4 of the gateway's workers to report, and 1 did" in registry.waiting_for(
            [worker(workers=4)], state_with(), None
        )
        assert registry.waiting_for([worker(workers=4)], state_with(), 1) == ""

    def test_one_is_behind(self):
        assert "1 of the gateway's 2 workers" in registry.waiting_for(
            [worker(), worker(generation=3)], state_with("a"), 2
        )

    def test_somebody_has_written_again_meanwhile(self):
        state = state_with("a", generation=3)
        assert registry.waiting_for([worker(generation=4)], state, None) == ""
        refused = worker(rejected={"a": "no such provider", "of the other": "x"})
        assert registry.rejections([refused], state) == ["the gateway refused the deployment a: no such provider"]

    def test_one_that_has_applied_nothing(self):
        assert "1 of the gateway's 1 workers" in registry.waiting_for([worker(generation=None)], state_with("a"), None)
        assert registry.waiting_for([worker(generation=None)], EMPTY, None) == ""

    def test_a_former_start_may_have_any_number_but_must_follow(self):
        old = worker(workers=4, run="old", started_at=1.0)
        new = [worker(pid=pid, workers=2, run="new", started_at=2.0) for pid in (2, 3)]
        assert registry.waiting_for([old, *new], state_with("a"), None) == ""
        missing = registry.waiting_for([old, new[0]], state_with("a"), None)
        assert missing == "2 of the gateway's workers to report, and 1 did"
        behind = registry.waiting_for([old._replace(generation=3), *new], state_with("a"), None)
        assert behind == "1 of the gateway's 3 workers to apply it"

    def test_an_old_report_does_not_count(self):
        assert registry.waiting_for([worker(age=60.0)], state_with("a"), None) != ""

    def test_pauses_count(self):
        state = state_with("a", pauses={"guard": ["a"]})
        assert registry.waiting_for([worker()], state, None) != ""
        assert registry.waiting_for([worker(paused_generations={"guard": 3})], state, None) == ""
        # Somebody has written again since.
        assert registry.waiting_for([worker(paused_generations={"guard": 4})], state, None) == ""
        assert registry.waiting_for([worker(paused_generations={"guard": 2})], state, None) != ""

    def test_what_a_worker_does_not_know(self):
        assert registry.unknown_to(worker(), state_with("a", "b")) == ["b"]
        assert registry.unknown_to(worker(), state_with("a")) == []

    def test_refusals_are_told_of_this_generation_only(self):
        refused = worker(rejected={"a": "no such provider"})
        assert registry.rejections([refused], state_with("a")) == [
            "the gateway refused the deployment a: no such provider"
        ]
        assert registry.rejections([refused._replace(generation=3)], state_with("a")) == []


class TestFiles:
    @pytest.fixture
    def files(self, tmp_path):
        there = registry.Registry(str(tmp_path / "registry"))
        there.prepare()
        return there

    def test_what_a_change_replaced_can_be_put_back(self, files):
        files.write(plan([deployment("a", api_key="old"), deployment("b")], EMPTY))
        files.write(plan([deployment("a", api_key="new"), deployment("b"), deployment("c")], files.read()))
        back = plan([{"id": name, "state": "former"} for name in "abc"], files.read())
        assert back.changed == ["a"]
        files.write(back)
        assert files.read().deployments["a"]["litellm_params"]["api_key"] == "old"
        assert stat.S_IMODE(os.stat(os.path.join(files.folder, "former.json")).st_mode) == 0o600
        again = plan([{"id": "a", "state": "former"}], files.read(), purge=False)
        assert again.state.deployments["a"]["litellm_params"]["api_key"] == "new"

    def test_what_is_written_is_read(self, files):
        planned = plan([deployment("a")], EMPTY, asked=pausing(pause=["a"]))
        files.write(planned)
        assert files.read() == planned.state

    def test_only_the_user_may_read(self, files):
        files.write(plan([deployment("a", api_key="t")], EMPTY))
        assert stat.S_IMODE(os.stat(os.path.join(files.folder, "deployments.json")).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(files.folder).st_mode) == 0o700

    def put(self, files, name, text):
        path = os.path.join(files.folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as stream:
            stream.write(text)

    def test_a_broken_file_is_written_anew_with_a_generation_of_its_own(self, files):
        report = {"format": 1, "pid": os.getpid(), "at": 0, "generation": 7, "paused_generations": {"guard": 9}}
        self.put(files, "applied/1.json", json.dumps({**report, "workers": 1, "rejected": {}, "error": None}))
        self.put(files, "deployments.json", "{")
        state = files.read()
        assert (state.deployments, state.broken) == (None, ("deployments.json",))
        assert plan([deployment("a")], state).files["deployments.json"]["generation"] == 10

    @pytest.mark.parametrize("name", registry_documents.BROKEN_DEPLOYMENTS)
    def test_broken_deployments(self, files, name):
        self.put(files, "deployments.json", registry_documents.BROKEN_DEPLOYMENTS[name])
        assert (files.read().deployments, files.read().broken) == (None, ("deployments.json",))
        assert files.deployments() == (None, False)

    @pytest.mark.parametrize("name", registry_documents.DEPLOYMENTS)
    def test_whole_deployments(self, files, name):
        self.put(files, "deployments.json", registry_documents.DEPLOYMENTS[name])
        state = files.read()
        assert (state.deployments_generation, state.broken) == (2, ())
        registry.describe(state)

    @pytest.mark.parametrize("name", registry_documents.BROKEN_PAUSES)
    def test_broken_pauses(self, files, name):
        self.put(files, "paused/operator.json", registry_documents.BROKEN_PAUSES[name])
        assert (files.read().pauses, files.read().broken) == ({}, ("paused/operator.json",))

    @pytest.mark.parametrize("name", registry_documents.PAUSES)
    def test_whole_pauses(self, files, name):
        self.put(files, "paused/operator.json", registry_documents.PAUSES[name])
        state = files.read()
        assert (state.pauses["operator"]["generation"], state.broken) == (2, ())
        registry.paused_by(state, NOW)

    @pytest.mark.parametrize("text", ["{", None])
    def test_what_the_workers_keep_of_it_is_what_there_is(self, files, text):
        files.write(plan([deployment("a"), deployment("b")], EMPTY, asked=pausing(pause=["a"])))
        whole = files.read()
        for name in ("deployments.json", "paused/operator.json"):
            path = os.path.join(files.folder, name)
            with open(path) as stream:
                self.put(files, f"applied/kept/{name}", stream.read())
            if text is None:
                os.unlink(path)
            else:
                self.put(files, name, text)
        state = files.read()
        assert state == whole._replace(broken=("deployments.json", "paused/operator.json"))
        assert registry.fleet_problems([], state.deployments, pausing(pause=["b"]), state) == []
        mended = plan(None, state, asked=pausing(pause=["b"]))
        assert mended.state.broken == ()
        files.write(mended)
        assert files.read() == mended.state
        assert sorted(registry.paused_by(files.read(), NOW)) == ["a", "b"]

    def test_what_was_never_there_is_not_broken(self, files):
        assert files.read() == EMPTY

    @pytest.mark.parametrize("name", ["deployments.json", "former.json", "paused/operator.json"])
    def test_what_cannot_be_read_is_named(self, files, name):
        files.write(plan([], EMPTY))
        path = os.path.join(files.folder, name)
        if os.path.exists(path):
            os.unlink(path)
        os.mkdir(path)
        with pytest.raises(registry.RegistryError, match="cannot be read") as caught:
            files.read()
        assert str(caught.value).startswith(path)

    def test_pauses_are_set_before_the_deployments_change_and_lifted_after(self, files, monkeypatch):
        files.write(plan([deployment("a"), deployment("b")], EMPTY, asked=pausing(pause=["a"])))
        written = []

        def note(path, text, mode):
            document = json.loads(text)
            written.append((os.path.basename(path), sorted(document.get("paused", ())), document["generation"]))

        monkeypatch.setattr(registry, "atomic_write", note)
        moved = [deployment(name, api_base="http://other:1234/v1") for name in "abc"]
        files.write(plan(moved, files.read(), asked=pausing(pause=["c"], resume=["a"])))
        written = [entry for entry in written if entry[0] != "former.json"]
        assert written == [("operator.json", ["a", "c"], 1), ("deployments.json", [], 2), ("operator.json", ["c"], 2)]

    @pytest.mark.parametrize(("age", "there"), [(59, 1), (61, 0)])
    def test_a_report_of_long_ago_is_of_no_worker(self, files, age, there):
        report = {"format": 1, "pid": os.getpid(), "at": NOW - age, "generation": 7, "paused_generations": {}}
        self.put(files, "applied/1.json", json.dumps({**report, "workers": 1, "rejected": {}, "error": None}))
        assert len(files.workers(NOW)) == there

    def test_a_file_of_former_times_gets_a_generation_that_no_worker_knows(self, files):
        files.write(plan([deployment("a")], EMPTY))
        report = {"format": 1, "pid": os.getpid(), "at": 0, "generation": 7, "paused_generations": {}, "workers": 1}
        with open(os.path.join(files.folder, "applied", "1.json"), "w") as stream:
            json.dump({**report, "rejected": {}, "error": None}, stream)
        planned = plan([deployment("b")], files.read())
        assert planned.files["deployments.json"]["generation"] == 8

    def test_dead_workers_and_half_reports_are_left_out(self, files):
        for name, text in (("1.json", '{"format": 1, "pid": 4194999}'), ("2.json", "{"), ("3.tmp", "")):
            with open(os.path.join(files.folder, "applied", name), "w") as stream:
                stream.write(text)
        assert files.workers(NOW) == []


def test_a_diff_shows_no_token_and_no_generation():
    shown = registry.describe(plan([deployment("a", api_key="geheim")], EMPTY, asked=pausing(pause=["a"])).state)
    assert "geheim" not in shown
    assert "generation" not in shown
    assert '"operator"' in shown
