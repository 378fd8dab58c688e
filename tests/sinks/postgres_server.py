"""A PostgreSQL server of the tests' own: on a free port of the loopback, with syncs as they come, killed at will."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import adbc_driver_postgresql.dbapi


def programs():
    """The directory of ``initdb`` and ``postgres``, where Debian and others put it; None where there is none."""
    places = [Path(found).parent] if (found := shutil.which("initdb")) else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    places += [Path(found).resolve().parent] if (found := shutil.which("postgres")) else []
    return next((place for place in reversed(places) if (place / "initdb").exists()), None)


class PostgresServer:
    """``start`` it, ``kill`` it (SIGKILL, the server and all it forked), start it again: it recovers."""

    def __init__(self, bin_directory):
        self._bin = bin_directory
        self._user = _plain_user()
        self.directory = Path(tempfile.mkdtemp(prefix="engine-postgres-"))
        self.kills = 0
        self._process = None
        self._connection = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        if self._user:
            shutil.chown(self.directory, self._user)
        self._run("initdb", "-D", self._data, "-U", "engine", "-A", "trust", "--no-locale", "-E", "UTF8")

    @property
    def _data(self):
        return str(self.directory / "data")

    def uri(self, schema=None):
        options = f"?options=-csearch_path%3D{schema}" if schema else ""
        return f"postgresql://engine:secret@127.0.0.1:{self._port}/postgres{options}"

    def start(self):
        """Start it and wait until it has recovered and takes connections."""
        arguments = ["-D", self._data, "-h", "127.0.0.1", "-p", str(self._port), "-k", ""]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", *arguments], stdout=log, stderr=log, cwd=self.directory, **self._identity()
            )
        while self._run("pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self._port), check=False):
            assert self._process.poll() is None, (self.directory / "log").read_text()

    def connection(self):
        """One of the tests' own, which they share: to connect takes longer than all that a test looks at."""
        if self._connection is None:
            self._connection = adbc_driver_postgresql.dbapi.connect(self.uri(), autocommit=True)
        return self._connection

    def kill(self):
        """SIGKILL to the server and every process that it forked."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for pid in (self._process.pid, *map(int, children)):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait()
        self._disconnect()
        self.kills += 1

    @property
    def running(self):
        return self._process.poll() is None

    def remove(self):
        self._disconnect()
        if self._process is not None and self.running:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
        shutil.rmtree(self.directory)

    def _disconnect(self):
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _run(self, program, *arguments, check=True):
        done = subprocess.run(
            [self._bin / program, *arguments], capture_output=True, cwd=self.directory, check=False, **self._identity()
        )
        assert not check or done.returncode == 0, done.stderr.decode()
        return done.returncode

    def _identity(self):
        return {"user": self._user, "group": pwd.getpwnam(self._user).pw_gid, "extra_groups": []} if self._user else {}


def _plain_user():
    """Whom the server runs as: it refuses to run as root."""
    if os.getuid() != 0:
        return None
    users = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in users else "nobody"
