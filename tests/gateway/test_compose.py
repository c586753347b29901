# SPDX-License-Identifier: GPL-3.0-or-later
"""The role with litellm_runtime compose: what it writes, and what it does with Docker and without."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gateway_under_test import REPOSITORY

IMAGE = "registry.example.net/litellm@sha256:" + "0" * 64
VARIABLES = {
    "litellm_runtime": "compose",
    "litellm_compose_image": IMAGE,
    "litellm_master_key": 'sk-it\'s "so" $ecret\\',
    "litellm_environment": {"PLAIN": '$a \\b "c" d'},
    "litellm_redis_url": "redis://:geheim@redis.example.net:6379/0",
    "litellm_workers": 3,
    "litellm_address": "10.0.0.1",
}


@pytest.fixture
def play(tmp_path):
    """Return a function that applies the role to this machine; its result has returncode and stdout."""

    def play(*arguments, path="", **variables):
        given = {**VARIABLES, "litellm_root": str(tmp_path / "gateway"), **variables}
        role = {"role": "lmfleet.mac.litellm", "vars": given}
        book = tmp_path / "play.yml"
        book.write_text(yaml.safe_dump([{"hosts": "localhost", "gather_facts": False, "roles": [role]}]))
        command = [
            Path(sys.executable).parent / "ansible-playbook",
            "-i",
            "localhost,",
            "-c",
            "local",
            book,
            *arguments,
        ]
        environment = {**os.environ, "ANSIBLE_NOCOLOR": "1", "PATH": f"{path}:{os.environ['PATH']}"}
        return subprocess.run(
            [*command, "-e", f"ansible_python_interpreter={sys.executable}"],
            cwd=REPOSITORY,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
        )

    return play


@pytest.fixture
def docker(tmp_path):
    """Return a folder with a docker that writes down how it was called, and says no when a file tells it to."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "docker").write_text(
        f'#!/bin/sh\necho "$@" >> {folder}/calls\n[ "$2" = version ] || [ ! -e {folder}/no ]\n'
    )
    (folder / "docker").chmod(0o755)
    return folder


def test_it_writes_all_that_a_container_needs(play, tmp_path, docker):
    done = play("--diff", "-v", path=str(docker))
    assert done.returncode == 0, done.stdout
    root = tmp_path / "gateway"
    service = yaml.safe_load((root / "compose.yml").read_text())["services"]["gateway"]
    assert service["image"] == IMAGE
    assert service["ports"] == ["10.0.0.1:4000:4000"]
    assert shlex.join(service["command"]).endswith("--num_workers 3 --run_gunicorn")
    # All read-only but the reports of the workers; what is mounted is there.
    mounts = [volume.split(":") for volume in service["volumes"]]
    assert [mount[1] for mount in mounts if mount[2:] != ["ro"]] == ["/gateway/registry/applied"]
    assert [mount for mount in mounts if not (root / mount[0]).is_dir()] == []
    config = yaml.safe_load((root / "config" / "config.yaml").read_text())
    assert config["router_settings"]["redis_url"] == "os.environ/LMFLEET_REDIS_URL"
    assert (root / "config" / "lmfleet_registry.py").exists()
    assert (root / "master_key").read_text() == VARIABLES["litellm_master_key"] + "\n"
    compile(service["healthcheck"]["test"][3], "healthcheck", "exec")
    # Secrets: in two files that nobody else can read, and nowhere else.
    for name in ("gateway.env", "master_key"):
        assert (root / name).stat().st_mode & 0o077 == 0
    variables = (root / "gateway.env").read_text().splitlines()
    assert r'LITELLM_MASTER_KEY="sk-it' "'" r's \"so\" \$ecret\0134"' in variables
    assert """PLAIN='$a \\b "c" d'""" in variables
    for text in (done.stdout, (root / "compose.yml").read_text(), (root / "config" / "config.yaml").read_text()):
        assert "geheim" not in text
        assert "$ecret" not in text
    assert f"compose --project-directory {root} --file" in (docker / "calls").read_text()
    assert "changed=0" in play(path=str(docker)).stdout


@pytest.fixture
def in_home():
    """The path of a folder in the home, which ends with the test."""
    path = Path.home() / f".lmfleet-test-{os.getpid()}"
    yield path
    shutil.rmtree(path, ignore_errors=True)


def test_a_folder_in_the_home_is_found_and_secrets_of_the_config_are_not_shown(play, in_home, docker):
    settings = {"litellm_settings": {"redis_password": "geheim"}, "litellm_workers": "auto"}
    done = play("--diff", "-vvv", path=str(docker), litellm_root=f"~/{in_home.name}", **settings)
    assert done.returncode == 0, done.stdout
    assert f"compose --project-directory {in_home} --file" in (docker / "calls").read_text()
    assert "geheim" in (in_home / "config" / "config.yaml").read_text()
    assert "geheim" not in done.stdout
    service = yaml.safe_load((in_home / "compose.yml").read_text())["services"]["gateway"]
    assert service["environment"]["LMFLEET_WORKERS"] == str(min(max(os.cpu_count() // 2, 1), 8))


def test_a_compose_file_that_docker_refuses_is_not_written(play, tmp_path, docker):
    (docker / "no").touch()
    done = play(path=str(docker))
    assert done.returncode != 0
    assert not (tmp_path / "gateway" / "compose.yml").exists()


@pytest.mark.parametrize("missing", [{"litellm_compose_image": "litellm:latest"}, {"litellm_master_key": ""}])
def test_without_a_digest_or_a_key_it_is_refused(play, tmp_path, missing):
    done = play(**missing)
    assert done.returncode != 0
    assert "needs litellm_compose_image with a digest" in done.stdout
    assert not (tmp_path / "gateway").exists()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"litellm_compose_image": IMAGE.replace("@", ":v1.107.0@")}, "litellm_compose_image: LiteLLM 1.107.0 was"),
        ({"litellm_version": "1.82.7"}, "litellm_version: LiteLLM 1.82.7 was published by an attacker"),
    ],
)
def test_a_release_that_must_not_run_is_refused(play, tmp_path, bad, message):
    done = play(**bad)
    assert done.returncode != 0
    assert message in done.stdout
    assert not (tmp_path / "gateway").exists()


def test_the_first_master_key_is_kept_for_a_database(play, tmp_path):
    root, database = tmp_path / "gateway", {"litellm_database_url": "postgresql://me:geheim@db:5432/litellm"}
    assert play(litellm_master_key="sk-first").returncode == 0
    assert not (root / "salt_key").exists()
    assert "SALT" not in (root / "gateway.env").read_text()
    for key in ("sk-second", "sk-third"):
        done = play("--diff", "-vvv", **database, litellm_master_key=key)
        assert done.returncode == 0, done.stdout
        assert (root / "salt_key").read_text() == "sk-first\n"
        assert (root / "salt_key").stat().st_mode & 0o077 == 0
        assert {"LITELLM_SALT_KEY='sk-first'", f"LITELLM_MASTER_KEY='{key}'"} <= set(
            (root / "gateway.env").read_text().splitlines()
        )
        assert "sk-first" not in done.stdout
    assert "changed=0" in play(**database, litellm_master_key="sk-third").stdout


def test_a_key_for_the_database_is_the_first_master_key_or_the_one_that_is_given(play, tmp_path):
    root, database = tmp_path / "gateway", {"litellm_database_url": "postgresql://me:geheim@db:5432/litellm"}
    given = {**database, "litellm_environment": {"LITELLM_SALT_KEY": "sk-given"}}
    assert play(**given).returncode == 0
    assert "LITELLM_SALT_KEY='sk-given'" in (root / "gateway.env").read_text()
    assert not (root / "salt_key").exists()
    assert play("--check", **database, litellm_root=str(tmp_path / "other")).returncode == 0
    assert play(**database, litellm_root=str(tmp_path / "other"), litellm_master_key="sk-new").returncode == 0
    assert (tmp_path / "other" / "salt_key").read_text() == "sk-new\n"


def test_a_first_master_key_that_cannot_be_read_is_not_taken_for_none(play, tmp_path):
    root, database = tmp_path / "gateway", {"litellm_database_url": "postgresql://me:geheim@db:5432/litellm"}
    (root / "master_key").mkdir(parents=True)  # nobody can read it, not even root
    assert play(**database, litellm_master_key="sk-new").returncode != 0
    assert not (root / "salt_key").exists()
