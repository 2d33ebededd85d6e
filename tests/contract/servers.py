"""Real servers for tests: each in a directory of its own, reached by a Unix socket only. PostgreSQL refuses to be root, so there it runs as `postgres`."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import quote

_INSTALL = "is not installed: `make test` installs it, as does scripts/bootstrap.sh --tests"


def _program(name: str) -> str:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
    program = str(found[0]) if found else shutil.which(name)
    assert program, f"{name} {_INSTALL}"
    return program


class PostgresServer:
    """One cluster, started; `crash` ends it without a checkpoint, `start` brings it back."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="torpor-pg-", dir="/tmp"))
        self._count = 0
        self._as_user: list[str] = []
        if os.getuid() == 0:
            account = pwd.getpwnam("postgres")
            os.chown(self.home, account.pw_uid, account.pw_gid)
            self._as_user = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups", "--"]
        self._run("initdb", "-D", self._data, "-U", "torpor", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync")
        self.start()

    @property
    def _data(self) -> str:
        return str(self.home / "data")

    def start(self) -> None:
        """Returns when it accepts connections."""
        settings = f"-c listen_addresses= -c unix_socket_directories={self.home} -c max_connections=80 -c shared_buffers=16MB"
        self._run("pg_ctl", "-D", self._data, "-w", "-t", "60", "-l", str(self.home / "log"), "-o", settings, "start")

    def crash(self) -> None:
        self._run("pg_ctl", "-D", self._data, "-w", "-m", "immediate", "stop")

    def database(self) -> str:
        """The URL of a fresh, empty database."""
        self._count += 1
        name = f"case_{self._count}"
        self._run("createdb", "-h", str(self.home), "-U", "torpor", name)
        return f"postgresql://torpor@/{name}?host={quote(str(self.home), safe='')}"

    def close(self) -> None:
        if (self.home / "data" / "postmaster.pid").exists():
            self.crash()
        shutil.rmtree(self.home)

    def _run(self, name: str, *arguments: str) -> None:
        # To a file, not a pipe: the server that pg_ctl leaves behind would hold a pipe open.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run([*self._as_user, _program(name), *arguments], cwd=self.home, stdout=output, stderr=output, check=False, timeout=90)
            output.seek(0)
            assert done.returncode == 0, f"{name}: {output.read().decode(errors='replace')}"


class RedisServer:
    """One Redis without persistence; `crash` ends it, `start` brings it back, empty."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="torpor-redis-", dir="/tmp"))
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"unix://{self.home}/socket"

    def start(self) -> None:
        """Returns when it accepts connections."""
        program = shutil.which("redis-server")
        assert program, f"redis-server {_INSTALL}"
        arguments = ["--port", "0", "--unixsocket", str(self.home / "socket"), "--save", "", "--appendonly", "no", "--dir", str(self.home)]
        self.process = subprocess.Popen([program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if b"ready to accept connections" in line.lower():
                return
        raise AssertionError("redis-server ended before it was ready")

    def crash(self) -> None:
        assert self.process is not None and self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process = None

    def close(self) -> None:
        if self.process is not None:
            self.crash()
        shutil.rmtree(self.home)
