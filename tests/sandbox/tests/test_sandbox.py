# SPDX-License-Identifier: GPL-3.0-or-later
"""A sandbox Mac as ssh and Ansible see it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from lmfleet_sandbox.realm import CACHE
from lmfleet_sandbox.testing import sandbox

pytestmark = pytest.mark.sandbox

LINUX_ONLY = """
    apt apt-get dpkg systemctl journalctl service getent sha256sum md5sum timeout free ip ss nproc useradd groupadd
    adduser usermod ldd ldconfig lsblk findmnt strace unshare nsenter setpriv gcc cc pip3 lsb_release
    update-alternatives chattr setfacl numfmt tac shuf flock setsid ionice hostnamectl
"""
TOP_LEVEL = """
    Applications Library System Users Volumes bin cores dev etc lib lib32 lib64 libx32 opt private proc run sbin tmp
    usr var
"""
MAC_COMMANDS = [
    "/bin/launchctl", "/usr/sbin/sysctl", "/usr/bin/sw_vers", "/usr/bin/vm_stat", "/usr/bin/pmset", "/sbin/ifconfig",
    "/sbin/route", "/usr/sbin/lsof", "/bin/ps", "/usr/bin/id", "/usr/bin/sudo", "/usr/bin/python3", "/usr/bin/tar",
    "/usr/bin/curl", "/bin/sh", "/bin/bash", "/usr/bin/ssh", "/usr/sbin/chown", "/usr/bin/awk",
]  # fmt: skip


@pytest.fixture(scope="module")
def facts(realm, tmp_path_factory):
    """What ansible.builtin.setup reports about mac-1 over ssh."""
    folder = tmp_path_factory.mktemp("ansible")
    variables = {
        "ansible_host": realm.address_of(1),
        "ansible_user": "admin",
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_ssh_private_key_file": str(realm.ssh_folder / "id_ed25519"),
        "ansible_ssh_common_args": f"-F none -o UserKnownHostsFile={realm.ssh_folder / 'known_hosts'}",
    }
    (folder / "inventory.json").write_text(json.dumps({"all": {"hosts": {"mac-1": variables}}}))
    (folder / "ansible.cfg").write_text("[defaults]\n")
    ansible = Path(sys.executable).with_name("ansible")
    command = [ansible, "-i", folder / "inventory.json", "mac-1", "-m", "ansible.builtin.setup"]
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "ANSIBLE_CONFIG": str(folder / "ansible.cfg"),
        "LC_ALL": "C.UTF-8",
    }
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=environment, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return json.loads(done.stdout.partition("=> ")[2])["ansible_facts"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("system", "Darwin"),
        ("machine", "arm64"),
        ("architecture", "arm64"),
        ("os_family", "Darwin"),
        ("distribution", "MacOSX"),
        ("distribution_version", "15.5"),
        ("kernel", "24.5.0"),
        ("hostname", "mac-1"),
        ("memtotal_mb", 65536),
        ("processor", "Apple M2 Max"),
        ("processor_cores", "12"),
        ("model", "Mac14,13"),
        ("user_id", "admin"),
        ("user_uid", 501),
        ("user_gid", 20),
        ("user_dir", "/Users/admin"),
        ("service_mgr", "launchd"),
        ("interfaces", ["en0", "lo0"]),
    ],
)
def test_fact(facts, name, value):
    assert facts[f"ansible_{name}"] == value


def test_facts_of_address_memory_and_uptime(facts, realm):
    assert facts["ansible_default_ipv4"]["address"] == realm.address_of(1)
    assert 0 < facts["ansible_memfree_mb"] < 65536
    assert 0 <= facts["ansible_uptime_seconds"] < 3600
    assert facts["ansible_pkg_mgr"] not in ("apt", "dnf")


def test_python_sees_a_mac(mac):
    script = "import platform; print(platform.system(), platform.machine(), platform.mac_ver()[0])"
    assert mac.ok(f"python3 -c '{script}'") == "Darwin arm64 15.5\n"


def test_uname_can_be_switched_back(mac):
    assert mac.ok("uname -sm") == "Darwin arm64\n"
    assert mac.ok("LMFLEET_SANDBOX_UNAME=real uname -s") == "Linux\n"
    assert mac.ok("LMFLEET_SANDBOX_UNAME=other uname -s") == "Darwin\n"


@pytest.mark.parametrize("path", ["/", "/usr", "/usr/bin", "/bin", "/sbin", "/usr/lib", "/System", "/System/Library"])
def test_system_volume_is_sealed(mac, path):
    result = mac.sh(f"touch {path}/new", root=True)
    assert result.code == 1
    assert "Read-only file system" in result.err


@pytest.mark.parametrize(
    "path", ["/Users", "/Library", "/Applications", "/usr/local", "/usr/local/bin", "/opt", "/private/var", "/etc"]
)
def test_data_volume_is_writable_by_root(mac, path):
    mac.ok(f"touch {path}/new && rm {path}/new", root=True)
    assert "Permission denied" in mac.sh(f"touch {path}/new").err


def test_links_of_the_system_volume(mac):
    assert mac.ok("cd /tmp && pwd -P; cd /var && pwd -P; cd /etc && pwd -P").split() == [
        "/private/tmp",
        "/private/var",
        "/private/etc",
    ]
    mac.ok("touch /tmp/mine /var/tmp/mine && rm /tmp/mine /var/tmp/mine")


def test_linux_only_commands_are_absent(mac):
    script = f"for one in {' '.join(LINUX_ONLY.split())}; do command -v $one; done; true"
    assert mac.ok(script) == ""
    assert mac.sh("cat /etc/os-release /usr/lib/os-release /etc/debian_version").out == ""


def test_mac_commands_are_there(mac):
    assert mac.ok(f"for one in {' '.join(MAC_COMMANDS)}; do test -x $one || echo $one; done") == ""


def test_this_machine_does_not_show(mac):
    # /root holds interpreters of this machine, if anything.
    assert set(mac.ok("ls /").split()) <= {*TOP_LEVEL.split(), "root"}
    assert mac.ok("ls /Users").split() == ["Shared", "admin"]
    assert mac.ok("ls /usr/local/bin") == ""


def test_pythons(mac):
    # As with Apple's Command Line Tools, the program of that name starts an interpreter that lies elsewhere.
    assert mac.ok("/usr/bin/python3 -c 'import sys, ssl, sqlite3, ctypes; print(sys.version_info[0])'") == "3\n"
    assert mac.ok("/usr/bin/python3 -m venv /tmp/own && /tmp/own/bin/python3 -c 'import subprocess, ssl'") == ""
    version = mac.ok("/opt/sandbox/python -c 'import sys, ssl; print(*sys.version_info[:2])'").split()
    assert tuple(map(int, version)) >= (3, 11)


def test_a_virtual_environment_of_the_newer_python(mac):
    mac.ok("LMFLEET_SANDBOX_UNAME=real /opt/sandbox/python -m venv --without-pip ~/venv")
    assert mac.ok("~/venv/bin/python -c 'import sys; print(sys.prefix)'; rm -r ~/venv") == "/Users/admin/venv\n"


def test_outgoing_connections_have_the_ports_of_macos(mac):
    """Most of the ports on which LM Studio's daemons listen are outside: no connection can be in their way."""
    assert mac.ok("cat /proc/sys/net/ipv4/ip_local_port_range").split() == ["49152", "65535"]


def test_sysctl(mac):
    names = "hw.memsize hw.perflevel0.physicalcpu hw.perflevel1.physicalcpu machdep.cpu.brand_string"
    assert mac.ok(f"sysctl -n {names}").splitlines() == ["68719476736", "8", "4", "Apple M2 Max"]
    unknown = mac.sh("sysctl -n hw.nothing")
    assert (unknown.code, unknown.err) == (1, "sysctl: unknown oid 'hw.nothing'\n")


def test_gpu_limit_is_set_by_root_until_the_next_boot(other_mac):
    assert other_mac.ok("sysctl -n iogpu.wired_limit_mb") == "0\n"
    assert "Operation not permitted" in other_mac.sh("sysctl iogpu.wired_limit_mb=40000").err
    assert other_mac.ok("sysctl iogpu.wired_limit_mb=40000", root=True) == "iogpu.wired_limit_mb: 0 -> 40000\n"
    assert other_mac.ok("sysctl -n iogpu.wired_limit_mb") == "40000\n"
    other_mac.reboot()
    assert other_mac.ok("sysctl -n iogpu.wired_limit_mb") == "0\n"


def test_power_settings_outlive_a_reboot(other_mac):
    assert other_mac.sh("pmset -a sleep 0").code == 77
    assert other_mac.sh("pmset -a nonsense 0", root=True).code == 64
    other_mac.ok("pmset -a sleep 0 autorestart 1", root=True)
    other_mac.reboot()
    settings = dict(line.split() for line in other_mac.ok("pmset -g custom").splitlines()[1:])
    assert (settings["sleep"], settings["autorestart"], settings["womp"]) == ("0", "1", "1")


def test_lsof_lists_listening_programs(mac):
    assert "n*:22\n" in mac.ok("lsof -nP -iTCP -sTCP:LISTEN -Fpn", root=True)


def test_sudo_keeps_home_as_on_a_mac(mac):
    assert mac.ok("sudo sh -c 'echo $HOME'; sudo -H sh -c 'echo $HOME'").split() == ["/Users/admin", "/var/root"]


def test_macs_reach_each_other_and_nothing_else(mac, realm):
    assert mac.ok("ping -c 1 -W 2 mac-2 > /dev/null && echo there") == "there\n"
    assert mac.sh("curl -sS -m 5 http://192.0.2.1/").code == 7
    assert mac.ok(f"curl -sS -m 5 -o /dev/null -w '%{{http_code}}' {realm.mirror_url}") == "200"


def test_ports_below_1024_are_open_to_all(mac):
    mac.ok("python3 -c 'import socket; socket.create_server((\"0.0.0.0\", 81))'")


def test_engine_folder_is_read_only(mac):
    assert "Read-only file system" in mac.sh("touch /opt/sandbox/engine/new", root=True).err


# -- knobs, reboot, exec


def test_reboot_keeps_the_disk_and_clears_tmp(other_mac):
    other_mac.ok("echo kept > ~/kept; echo gone > /tmp/gone; echo kept > /var/tmp/kept")
    before = other_mac.ok("sysctl -n kern.boottime")
    other_mac.reboot()
    assert other_mac.ok("cat ~/kept /var/tmp/kept; rm ~/kept /var/tmp/kept") == "kept\nkept\n"
    assert other_mac.sh("ls /tmp/gone").code != 0
    assert other_mac.ok("sysctl -n kern.boottime") != before


def test_a_new_disk_if_asked_for(other_mac):
    other_mac.ok("echo gone > ~/gone")
    other_mac.close()
    other_mac.sandbox("reboot", "--disk", "new")
    assert other_mac.sh("ls ~/gone").code != 0


def test_knobs_make_another_machine(other_mac):
    knobs = ["memory_gb=16", "performance_cores=4", 'macos_version="14.6"', 'machine="x86_64"']
    answer = other_mac.sandbox("knob", *knobs, "llmster.slow_stop_seconds=3")
    assert json.loads(answer.stdout)["memory_gb"] == 16
    try:
        assert other_mac.ok("sysctl -n hw.memsize hw.ncpu").split() == [str(16 * 1024**3), "8"]
        assert other_mac.ok("sw_vers -productVersion; uname -rm").split() == ["14.6", "23.6.0", "x86_64"]
        assert json.loads(other_mac.ok("cat /var/db/lmfleet-sandbox/knobs.json"))["llmster.slow_stop_seconds"] == 3
    finally:
        other_mac.sandbox("knob", "--clear")
    assert other_mac.ok("sysctl -n hw.memsize; uname -m").split() == [str(64 * 1024**3), "arm64"]


@pytest.mark.parametrize("setting", ["memory_gb", "=1", "memory_gb=sixteen"])
def test_a_knob_that_is_none(other_mac, realm, setting):
    done = sandbox("knob", "mac-2", setting, realm=realm.name, check=False)
    assert (done.returncode, done.stderr) == (1, f"sandbox: a knob is KEY=JSON, not {setting!r}\n")


def test_exec(mac):
    done = mac.sandbox("exec", "--", "sh", "-c", "id -un; echo $HOME $USER $PATH; pwd; uname -s")
    path = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    assert done.stdout.splitlines() == ["admin", f"/Users/admin admin {path}", "/Users/admin", "Darwin"]
    assert sandbox("exec", "--root", "mac-1", "--", "id", "-un", realm=mac.mac.realm.name).stdout == "root\n"


@pytest.mark.parametrize(("words", "code"), [("exit 7", 7), ("kill -9 $$", 137)])
def test_exec_exit_code(realm, words, code):
    assert sandbox("exec", "mac-1", "--", "sh", "-c", words, realm=realm.name, check=False).returncode == code


def test_exec_of_nothing(realm):
    done = sandbox("exec", "mac-1", "--", "nosuch", realm=realm.name, check=False)
    assert (done.returncode, done.stderr) == (127, "sandbox: nosuch: No such file or directory\n")


def test_status_and_logs(mac, realm):
    state = json.loads(sandbox("status", "--json", realm=realm.name).stdout)
    entry = state["macs"][0]
    assert (entry["name"], entry["address"], entry["state"]) == ("mac-1", realm.address_of(1), "up")
    assert "gui/501" in entry["domains"]
    assert {"system/com.openssh.sshd"} <= {job["target"] for job in entry["jobs"]}
    assert "com.openssh.sshd: started" in mac.sandbox("logs").stdout


@pytest.mark.parametrize("name", ["mac-3", "mac-0", "macbook", "mac-x"])
def test_no_such_mac(realm, name):
    done = sandbox("exec", name, "--", "true", realm=realm.name, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("sandbox: ")
    assert done.stderr.count("\n") == 1


# -- mirror


@pytest.fixture
def mirrored(realm):
    """A file of 1000 bytes on the mirror."""
    path = CACHE / "mirror" / f"range-test-{realm.name}.bin"
    path.write_bytes(bytes(range(250)) * 4)
    yield f"{realm.mirror_url}{path.name}"
    path.unlink()


def fetch(url: str, **headers: str):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return opener.open(urllib.request.Request(url, headers=headers), timeout=10)


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [("bytes=10-19", 10, 19), ("bytes=990-", 990, 999), ("bytes=-5", 995, 999), ("bytes=0-5000", 0, 999)],
)  # fmt: skip
def test_mirror_serves_ranges(mirrored, asked, first, last):
    with fetch(mirrored, Range=asked) as answer:
        assert answer.status == 206
        assert answer.headers["Content-Range"] == f"bytes {first}-{last}/1000"
        assert answer.read() == (bytes(range(250)) * 4)[first : last + 1]


def test_mirror_refuses_a_range_beyond_the_end(mirrored):
    with pytest.raises(urllib.error.HTTPError) as caught:
        fetch(mirrored, Range="bytes=1000-")
    with caught.value as error:
        assert (error.code, error.headers["Content-Range"]) == (416, "bytes */1000")


def test_mirror_serves_whole_files_and_listings(mirrored, realm):
    with fetch(mirrored) as answer:
        assert (answer.status, answer.headers["Accept-Ranges"], len(answer.read())) == (200, "bytes", 1000)
    with fetch(realm.mirror_url) as answer:
        assert mirrored.rpartition("/")[2] in answer.read().decode()


def test_login_is_quick(mac):
    mac.ok("true")
    begin = time.monotonic()
    mac.close()
    mac.ok("true")
    assert time.monotonic() - begin < 2
