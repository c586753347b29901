# SPDX-License-Identifier: GPL-3.0-or-later
"""The launchd stand-in, through launchctl over ssh: the answers of launchctl and what becomes of the jobs."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time

import pytest

from lmfleet_sandbox.testing import CLI, wait_until

pytestmark = pytest.mark.sandbox

FOREVER = "exec sleep 1000"
# Stops only when it is killed.
STUBBORN = "trap '' TERM; while :; do sleep 0.1; done"
GUI = "gui/501"


def loaded(make_job, *arguments, **keys):
    job = make_job(*arguments, **keys)
    result = job.bootstrap()
    assert (result.code, result.out, result.err) == (0, "", "")
    return job


def write_environment(name: str) -> str:
    return f"env > /tmp/{name}.new; mv /tmp/{name}.new /tmp/{name}"


# -- the table of exit codes


def test_print_shows_a_running_job(make_job):
    job = loaded(make_job, FOREVER, RunAtLoad=True)
    assert job.field("state") == "running"
    assert job.field("path") == job.path
    assert job.field("program") == "/bin/sh"
    assert job.field("last exit code") == "(never exited)"
    assert job.mac.ok(f"ps -o args= -p {job.pid}").strip() == "sleep 1000"


def test_bootstrap_of_a_loaded_label_is_5(make_job):
    job = loaded(make_job, FOREVER)
    result = job.bootstrap()
    assert (result.code, result.err) == (5, "Bootstrap failed: 5: Input/output error\n")


def test_bootstrap_of_a_loaded_label_is_37_on_other_releases(make_job, other_mac):
    job = loaded(make_job, FOREVER, on=other_mac)
    other_mac.sandbox("knob", "bootstrap_busy_code=37")
    try:
        result = job.bootstrap()
    finally:
        other_mac.sandbox("knob", "--clear")
    assert (result.code, result.err) == (37, "Bootstrap failed: 37: Operation already in progress\n")


def test_bootout_is_asynchronous(make_job):
    job = loaded(make_job, STUBBORN, RunAtLoad=True, ExitTimeOut=3)
    time.sleep(0.3)
    begin = time.monotonic()
    result = job.bootout()
    assert (result.code, result.err) == (36, "Boot-out failed: 36: Operation now in progress\n")
    assert time.monotonic() - begin < 1.5, "bootout must not wait for the process"
    assert job.print().code == 0, "the job is there until its process is gone"
    assert job.bootout().code == 36
    assert job.bootstrap().code == 5, "still draining"
    wait_until("the job is gone", lambda: job.print().code == 113)
    assert 2.5 < time.monotonic() - begin < 5, "SIGKILL comes ExitTimeOut seconds after SIGTERM"
    assert job.bootstrap().code == 0


def test_bootout_gives_5_seconds_by_default(make_job):
    job = loaded(make_job, STUBBORN, RunAtLoad=True)
    time.sleep(0.3)
    assert job.field("exit timeout") == "5"
    begin = time.monotonic()
    assert job.bootout().code == 36
    wait_until("the job is gone", lambda: job.print().code == 113)
    assert 4.5 < time.monotonic() - begin < 7


def test_bootout_of_a_quick_job_is_0(make_job):
    job = loaded(make_job, FOREVER, RunAtLoad=True)
    assert job.bootout().code == 0
    assert job.print().code == 113


def test_bootout_sends_sigterm_first(make_job):
    job = loaded(make_job, "trap 'echo asked > /tmp/asked; exit 0' TERM; while :; do sleep 0.02; done", RunAtLoad=True)
    time.sleep(0.3)
    job.bootout()
    wait_until("the job is gone", lambda: job.print().code == 113)
    assert job.mac.ok("cat /tmp/asked") == "asked\n"


def test_bootout_by_path(make_job):
    job = loaded(make_job, FOREVER, RunAtLoad=True)
    assert job.mac.launchctl("bootout system", job.path, root=True).code == 0
    assert job.print().code == 113


def test_bootout_of_what_is_not_loaded(make_job):
    job = make_job(FOREVER)
    result = job.bootout()
    assert (result.code, result.err) == (3, "Boot-out failed: 3: No such process\n")
    assert job.mac.launchctl("bootout system", job.path, root=True).code == 5


@pytest.mark.parametrize("words", ["print", "kickstart", "kickstart -k", "kill TERM"])
def test_unknown_label_is_113(mac, words):
    result = mac.launchctl(words, "system/test.nobody", root=True)
    assert result.code == 113
    assert 'Could not find service "test.nobody" in domain for system' in result.err


@pytest.mark.parametrize(
    "words",
    ["bootstrap gui/777 /tmp/x.plist", "bootout gui/777/x", "print gui/777/x", "print gui/777", "kickstart gui/777/x"],
)
def test_missing_domain_is_125(mac, words):
    result = mac.launchctl(words, root=True)
    assert result.code == 125
    assert "Domain does not support specified action" in result.err


def test_disabled_label_is_119(make_job):
    job = make_job(FOREVER)
    assert job.run("disable").code == 0
    result = job.bootstrap()
    assert (result.code, result.err) == (119, "Bootstrap failed: 119: Service is disabled\n")
    assert f'"{job.label}" => disabled' in job.mac.launchctl("print-disabled system").out
    assert job.run("enable").code == 0
    assert job.bootstrap().code == 0
    assert f'"{job.label}" => enabled' in job.mac.launchctl("print-disabled system").out


def test_disabled_key_yields_to_enable(make_job):
    job = make_job(FOREVER, Disabled=True)
    assert job.bootstrap().code == 119
    job.run("enable")
    assert job.bootstrap().code == 0


@pytest.mark.parametrize("spoil", ["chown admin", "chmod g+w", "chmod o+w"])
def test_bad_ownership_of_a_daemon_is_122(make_job, spoil):
    job = make_job(FOREVER)
    job.mac.ok(f"{spoil} {job.path}", root=True)
    result = job.bootstrap()
    assert (result.code, result.err) == (122, "Bootstrap failed: 122: Path had bad ownership/permissions\n")
    assert job.print().code == 113


def test_ownership_of_an_agent(make_job):
    job = make_job(FOREVER, domain=GUI)
    job.mac.ok(f"chown daemon {job.path}", root=True)
    assert job.bootstrap().code == 122
    job.mac.ok(f"chown root {job.path}", root=True)
    assert job.bootstrap().code == 0


@pytest.mark.parametrize("word", ["load", "unload", "load -w"])
def test_legacy_commands_fail_and_exit_0(make_job, word):
    job = make_job(FOREVER, RunAtLoad=True)
    result = job.mac.launchctl(word, job.path, root=True)
    assert result.code == 0
    assert "failed: 5: Input/output error" in result.err
    assert job.print().code == 113


@pytest.mark.parametrize(
    "keys",
    [
        {"ProgramArguments": ["/nowhere/program"]},
        {"Program": "/etc/hosts"},
        {"ProgramArguments": ["/usr/bin/true"], "WorkingDirectory": "/nowhere"},
        {"ProgramArguments": ["/usr/bin/true"], "StandardOutPath": "/nowhere/log"},
        {"ProgramArguments": ["/usr/bin/true"], "UserName": "nosuchuser"},
        {"ProgramArguments": ["/usr/bin/true"], "UserName": "admin", "StandardErrorPath": "/private/var/log/x.log"},
    ],
    ids=["no program", "not executable", "no folder", "no log folder", "no user", "log not writable by the user"],
)
def test_what_cannot_start_is_loaded_and_78(make_job, keys):
    job = loaded(make_job, RunAtLoad=True, **keys)
    wait_until("it has ended", lambda: job.field("state") == "not running")
    assert job.field("last exit code") == "78: EX_CONFIG"


@pytest.mark.parametrize("content", [b"no plist", b"<plist", b"bplist00junk", b""])
def test_unreadable_plist_is_5(mac, content):
    mac.write("/Library/LaunchDaemons/junk.plist", content + b"\n", root=True)
    try:
        assert mac.launchctl("bootstrap system /Library/LaunchDaemons/junk.plist", root=True).code == 5
    finally:
        mac.ok("rm /Library/LaunchDaemons/junk.plist", root=True)


@pytest.mark.parametrize("spec", [{}, {"ProgramArguments": []}, {"ProgramArguments": ["/bin/sh", 3]}, {"Program": 1}])
def test_plist_without_sense_is_5(make_job, spec):
    assert make_job(**spec).bootstrap().code == 5


def test_missing_plist_is_5(mac):
    assert mac.launchctl("bootstrap system /Library/LaunchDaemons/missing.plist", root=True).code == 5


@pytest.mark.parametrize("words", ["", "frobnicate", "print", "print nonsense/1", "bootstrap system", "kill TERM"])
def test_usage_is_64(mac, words):
    assert mac.launchctl(words).code == 64


def test_bootstrap_fails_knob(make_job, other_mac):
    job = make_job(FOREVER, on=other_mac)
    other_mac.sandbox("knob", "bootstrap_fails=true")
    assert job.bootstrap().code == 5
    other_mac.sandbox("knob", "--clear")
    assert job.bootstrap().code == 0


# -- what a plist says


def test_binary_plist(make_job):
    job = loaded(make_job, FOREVER, binary=True, RunAtLoad=True)
    assert job.field("state") == "running"


def test_nothing_starts_without_run_at_load(make_job):
    job = loaded(make_job, FOREVER)
    assert job.field("state") == "not running"
    assert job.pid is None


def test_kickstart(make_job):
    job = loaded(make_job, FOREVER)
    assert job.run("kickstart -p").out.strip() == str(job.pid)
    first = job.pid
    assert job.run("kickstart").code == 0
    assert job.pid == first, "without -k a running job stays"
    second = int(job.run("kickstart -kp").out)
    assert second != first
    assert job.pid == second


def test_kickstart_does_not_read_the_plist_again(make_job):
    job = loaded(make_job, FOREVER, RunAtLoad=True)
    job.spec["ProgramArguments"] = ["/bin/sleep", "2000"]
    job.write()
    job.run("kickstart -k")
    assert job.mac.ok(f"ps -o args= -p {job.pid}").strip() == "sleep 1000"
    job.bootout()
    job.bootstrap()
    assert job.mac.ok(f"ps -o args= -p {job.pid}").strip() == "/bin/sleep 2000"


def test_kickstart_kills_a_stubborn_job(make_job):
    job = loaded(make_job, STUBBORN, RunAtLoad=True, ExitTimeOut=1)
    time.sleep(0.3)
    first = job.pid
    assert int(job.run("kickstart -kp").out) != first
    assert job.field("last terminating signal") == "Killed: 9"


def test_keep_alive_starts_again_no_sooner_than_the_throttle(make_job):
    job = loaded(make_job, "date +%s.%N >> /tmp/starts", KeepAlive=True, ThrottleInterval=2)
    wait_until("three starts", lambda: len(job.mac.ok("cat /tmp/starts").split()) >= 3)
    starts = [float(word) for word in job.mac.ok("cat /tmp/starts").split()]
    job.mac.ok("rm -f /tmp/starts", root=True)
    gaps = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert all(1.9 < gap < 2.7 for gap in gaps), gaps


def test_default_throttle_is_10_seconds_and_kickstart_passes_it(make_job):
    job = loaded(make_job, "exit 3", KeepAlive=True)
    wait_until("it has ended", lambda: job.field("state") == "spawn scheduled")
    assert job.field("minimum runtime") == "10"
    assert job.field("runs") == "1"
    time.sleep(1)
    assert job.field("runs") == "1"
    assert job.field("last exit code") == "3"
    job.run("kickstart")
    wait_until("the second run", lambda: job.field("runs") == "2", timeout=2)


def test_throttle_counts_from_a_kickstart(make_job):
    job = loaded(make_job, "date +%s.%N >> /tmp/kicked", KeepAlive=True, ThrottleInterval=2)
    wait_until("it has ended", lambda: job.field("state") == "spawn scheduled")
    time.sleep(1)
    job.run("kickstart")
    wait_until("three starts", lambda: job.field("runs") == "3")
    starts = [float(word) for word in job.mac.ok("cat /tmp/kicked").split()]
    job.mac.ok("rm -f /tmp/kicked", root=True)
    assert starts[2] - starts[1] > 1.9


def test_a_job_that_ran_longer_than_the_throttle_starts_at_once(make_job):
    job = loaded(make_job, FOREVER, KeepAlive=True, ThrottleInterval=1)
    first = job.pid
    time.sleep(1.2)
    job.mac.ok(f"kill -9 {first}", root=True)
    assert wait_until("it runs again", lambda: job.pid not in (None, first)) < 0.8
    assert job.field("last terminating signal") == "Killed: 9"
    assert job.field("last exit code") is None


@pytest.mark.parametrize(
    ("keep_alive", "script", "again"),
    [
        ({"SuccessfulExit": False}, "exit 1", True),
        ({"SuccessfulExit": False}, "kill -KILL $$", True),
        ({"SuccessfulExit": False}, "exit 0", False),
        ({"SuccessfulExit": True}, "exit 0", True),
        ({"SuccessfulExit": True}, "exit 1", False),
        ({"Crashed": True}, "kill -SEGV $$", True),
        ({"Crashed": True}, "kill -TERM $$", False),
        ({"Crashed": True}, "exit 1", False),
        ({"Crashed": False}, "exit 0", True),
        ({"Crashed": True, "SuccessfulExit": False}, "exit 1", True),
        (False, "exit 1", False),
    ],
)
def test_keep_alive_by_exit(make_job, keep_alive, script, again):
    job = loaded(make_job, script, KeepAlive=keep_alive, ThrottleInterval=1, RunAtLoad=keep_alive is False)
    if again:
        wait_until("a second run", lambda: job.field("runs") not in ("0", "1"), timeout=3)
    else:
        wait_until("the first end", lambda: job.field("state") == "not running")
        time.sleep(1.3)
        assert job.field("runs") == "1"


def test_keep_alive_by_path(make_job):
    job = loaded(make_job, FOREVER, KeepAlive={"PathState": {"/tmp/wanted": True}}, ThrottleInterval=1)
    assert job.field("state") == "not running"
    job.mac.ok("touch /tmp/wanted")
    wait_until("it runs", lambda: job.field("state") == "running", timeout=3)
    job.mac.ok("rm /tmp/wanted")
    job.run("kill KILL")
    time.sleep(1.5)
    assert job.field("state") == "not running"


def test_start_interval(make_job):
    job = loaded(make_job, "exit 0", StartInterval=1)
    wait_until("two runs", lambda: int(job.field("runs") or 0) >= 2, timeout=4)


def test_environment_of_a_daemon_is_minimal(make_job):
    job = loaded(make_job, write_environment("daemon"), RunAtLoad=True, EnvironmentVariables={"COLOUR": "blue"})
    wait_until("it has run", lambda: job.mac.sh("test -e /tmp/daemon").code == 0)
    variables = dict(line.split("=", 1) for line in job.mac.ok("cat /tmp/daemon").splitlines())
    # Set by the shell that runs env, not by launchd.
    for name in ("PWD", "OLDPWD", "_", "SHLVL"):
        variables.pop(name, None)
    assert variables == {
        "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
        "XPC_SERVICE_NAME": job.label,
        "XPC_FLAGS": "0x0",
        "COLOUR": "blue",
    }


def test_environment_of_an_agent(make_job):
    job = loaded(make_job, f"id -u > /tmp/uid; {write_environment('agent')}", domain=GUI, RunAtLoad=True)
    wait_until("it has run", lambda: job.mac.sh("test -e /tmp/agent").code == 0)
    text = job.mac.ok("cat /tmp/agent")
    assert "HOME=/Users/admin\n" in text
    assert "SSH_CONNECTION" not in text
    assert job.mac.ok("cat /tmp/uid") == "501\n"


def test_user_folder_and_logs(make_job):
    script = "id -un; id -gn; id -Gn; pwd; umask; echo trouble >&2; touch /Users/admin/touched"
    job = loaded(
        make_job, script, RunAtLoad=True, UserName="admin", WorkingDirectory="/Users/admin", Umask=0o077,
        StandardOutPath="/Users/admin/out.log", StandardErrorPath="/Users/admin/err.log",
    )  # fmt: skip
    wait_until("it has run", lambda: job.field("last exit code") == "0")
    assert job.mac.ok("cat ~/out.log").split("\n")[:5] == ["admin", "staff", "staff admin", "/Users/admin", "0077"]
    assert job.mac.ok("cat ~/err.log") == "trouble\n"
    assert job.mac.ok("ls -l ~/out.log ~/touched | cut -c1-10; rm ~/out.log ~/err.log ~/touched").split() == [
        "-rw-------",
        "-rw-------",
    ]
    assert job.field("username") == "admin"


def test_group_and_logs_are_appended_to(make_job):
    job = loaded(make_job, "id -gn", GroupName="staff", StandardOutPath="/tmp/group.log")
    for runs in ("1", "2"):
        job.run("kickstart")
        wait_until("it has run", lambda runs=runs: (job.field("runs"), job.pid) == (runs, None))
    assert job.mac.ok("cat /tmp/group.log") == "staff\nstaff\n"


@pytest.mark.parametrize(("keys", "files"), [({}, "256"), ({"SoftResourceLimits": {"NumberOfFiles": 4096}}, "4096")])
def test_open_files(make_job, keys, files):
    job = loaded(make_job, f"ulimit -n > /tmp/files.{files}", RunAtLoad=True, **keys)
    wait_until("it has run", lambda: job.field("last exit code") == "0")
    assert job.mac.ok(f"cat /tmp/files.{files}").strip() == files


@pytest.mark.parametrize(("abandon", "survives"), [(False, False), (True, True)])
def test_what_a_job_leaves_in_its_process_group(make_job, abandon, survives):
    job = loaded(make_job, "sleep 1234 & sleep 0.2", RunAtLoad=True, AbandonProcessGroup=abandon)
    wait_until("it has ended", lambda: job.field("last exit code") == "0")
    time.sleep(0.1)
    assert (job.mac.sh("pkill -f 'sleep 123[4]'", root=True).code == 0) is survives


# -- signals


def test_kill_sends_a_signal(make_job):
    script = "trap 'echo hup >> /tmp/hups' HUP; while :; do sleep 0.02; done"
    job = loaded(make_job, script, RunAtLoad=True)
    time.sleep(0.3)
    for name in ("SIGHUP", "HUP", "1"):
        assert job.run("kill", name).code == 0
        time.sleep(0.1)
    wait_until("the signals came", lambda: job.mac.ok("cat /tmp/hups; true") == "hup\n" * 3, timeout=3)
    job.run("kill TERM")
    wait_until("it has ended", lambda: job.pid is None)
    assert job.field("last terminating signal") == "Terminated: 15"
    assert job.run("kill TERM").code == 3


# -- who may do what


def test_a_plain_user_may_look_at_daemons_but_not_change_them(make_job):
    job = loaded(make_job, FOREVER, RunAtLoad=True)
    assert job.print().code == 0
    for words in ("bootout", "kickstart -k", "kill TERM", "disable", "enable"):
        result = job.mac.launchctl(words, job.target)
        assert (result.code, "Operation not permitted" in result.err) == (1, True), words
    assert job.field("state") == "running"
    second = make_job(FOREVER)
    result = second.bootstrap(root=False)
    assert (result.code, result.err) == (5, "Bootstrap failed: 5: Input/output error\n")
    assert second.print().code == 113


def test_root_and_the_user_share_the_gui_domain_and_nobody_else(make_job):
    job = make_job(FOREVER, domain=GUI, RunAtLoad=True)
    assert job.bootstrap(root=True).code == 0
    assert job.mac.ok(f"ps -o user= -p {job.pid}").strip() == "admin"
    stranger = "sudo -u daemon launchctl"
    assert job.mac.sh(f"{stranger} bootout {job.target}").code == 1
    assert job.mac.sh(f"{stranger} bootstrap {GUI} {job.path}").code == 5
    assert job.mac.launchctl("bootout", job.target).code == 0


def test_domains_keep_labels_apart(make_job):
    daemon = loaded(make_job, FOREVER)
    agent = make_job(FOREVER, domain=GUI)
    assert agent.bootstrap().code == 0
    assert daemon.mac.launchctl(f"print gui/501/{daemon.label}").code == 113
    assert agent.label in agent.mac.launchctl("list").out
    assert daemon.label not in agent.mac.launchctl("list").out
    assert daemon.label in agent.mac.launchctl("list", root=True).out
    assert agent.mac.launchctl("list", daemon.label).code == 113
    assert agent.label in agent.mac.launchctl("print gui/501").out


# -- process 1 itself


def test_orphans_are_reaped(mac):
    mac.ok("(sleep 0.2 &) ; (sleep 0.2 &)")
    time.sleep(0.5)
    assert "Z" not in mac.ok("ps -axo stat=")


def test_process_1_sleeps_when_nothing_happens(mac):
    read = "cut -d' ' -f14,15 /proc/1/stat; grep ctxt /proc/1/status; "
    before, after = mac.ok(f"{read} echo --; sleep 2; {read}").split("--")
    assert before.split() == after.split()


# -- logging in and out, booting


def test_no_gui_session(make_job, other_mac):
    agent = make_job(FOREVER, domain=GUI, on=other_mac, RunAtLoad=True)
    agent.bootstrap()
    pid = agent.pid
    other_mac.sandbox("knob", "gui_session=false")
    try:
        assert other_mac.sh(f"ps -p {pid}").code == 1, "agents end when the user logs out"
        for words in (f"bootstrap {GUI} {agent.path}", f"print {agent.target}", f"kickstart {agent.target}"):
            assert other_mac.launchctl(words).code == 125, words
        other_mac.reboot()
        assert other_mac.launchctl("print", GUI).code == 125, "still nobody logged in after a reboot"
    finally:
        other_mac.sandbox("knob", "gui_session=true")
    assert agent.field("state") == "running", "logging in starts what is in ~/Library/LaunchAgents"


def test_gui_domain_is_closed_while_the_user_logs_out(make_job, other_mac):
    agent = make_job(STUBBORN, domain=GUI, on=other_mac, RunAtLoad=True, ExitTimeOut=3)
    late = make_job(FOREVER, domain=GUI, on=other_mac)
    agent.bootstrap()
    time.sleep(0.3)
    command = [sys.executable, str(CLI), "--realm", other_mac.mac.realm.name, "knob", "mac-2", "gui_session=false"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as logging_out:
        try:
            wait_until("the domain is closed", lambda: late.bootstrap().code == 125, timeout=2)
            assert logging_out.poll() is None, "logging out waits for the agents"
        finally:
            logging_out.wait(30)
            other_mac.sandbox("knob", "--clear")


def test_reboot_loads_what_it_should(make_job, other_mac):
    daemon = make_job(FOREVER, on=other_mac, RunAtLoad=True)
    agent = make_job(FOREVER, on=other_mac, domain=GUI, RunAtLoad=True)
    disabled = make_job(FOREVER, on=other_mac, RunAtLoad=True)
    disabled.run("disable")
    open_to_all = make_job(FOREVER, on=other_mac, RunAtLoad=True)
    other_mac.ok(f"chmod 666 {open_to_all.path}", root=True)
    elsewhere = make_job(FOREVER, on=other_mac, RunAtLoad=True)
    other_mac.ok(f"mv {elsewhere.path} /Library/{elsewhere.label}.plist", root=True)
    other_mac.launchctl("bootstrap system", f"/Library/{elsewhere.label}.plist", root=True)
    assert elsewhere.field("state") == "running"
    other_mac.reboot()
    assert daemon.field("state") == "running"
    assert agent.field("state") == "running"
    for absent in (disabled, open_to_all, elsewhere):
        assert absent.print().code == 113
    assert f'"{disabled.label}" => disabled' in other_mac.launchctl("print-disabled system").out


def test_user_domain_does_not_outlive_a_reboot(make_job, other_mac):
    job = make_job(FOREVER, on=other_mac, domain=GUI, RunAtLoad=True)
    assert other_mac.launchctl("bootstrap user/501", job.path).code == 0
    assert other_mac.launchctl(f"print user/501/{job.label}").code == 0
    other_mac.reboot()
    assert other_mac.launchctl(f"print user/501/{job.label}").code == 113
