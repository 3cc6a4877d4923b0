"""Real servers for tests: Redis and PostgreSQL on free ports, their files in a folder of their own.

    from thriftroute.tests.helpers.servers import redis_server

    with redis_server() as server:
        client = redis.Redis.from_url(server.url)
        server.stop()   # and server.start() on the same port; server.pause() and resume() hang it

Both skip the test, saying why, where the programs are not installed.
"""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

PATIENCE_S = 300.0  # a laptop under load is slow, and none of this is part of what is measured


class Server:
    """A program that listens on `port` of 127.0.0.1; `url` is how clients reach it."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        url: str,
        port: int,
        folder: Path,
        is_up: Callable[[], bool],
        stop_signal: signal.Signals = signal.SIGTERM,
        user: str | None = None,
    ) -> None:
        self.url = url
        self.port = port
        self.folder = folder
        self._command = list(command)
        self._is_up = is_up
        self._signal = stop_signal
        self._user = user
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the running program; None while it is stopped."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start, on the same port and files each time, and wait until it answers."""
        assert self._process is None, "the server is running already"
        log = self.folder / "server.log"
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self.folder,
                **_as_user(self._user),
            )
        end = time.monotonic() + PATIENCE_S
        while not self._is_up():
            if self._process.poll() is not None or time.monotonic() > end:
                self.kill()
                tail = log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self._command[0]} did not start:\n{tail}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Ask it to end and wait. Nothing where it is stopped."""
        self._end(self._signal)

    def kill(self) -> None:
        """End it at once, as a crash does."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Hang: connections stay open, and are accepted, but nothing answers any more."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """End a `pause`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)  # a paused program gets no other signal
        process.send_signal(how)
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def redis_server(*, keeps: bool = False) -> Iterator[Server]:
    """An empty Redis. `keeps`: what was written is there again after a stop and a start."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    program = _program("redis-server", "redis-server")
    port = free_port()

    def is_up() -> bool:
        with redis.Redis(port=port, socket_timeout=1, retry=Retry(NoBackoff(), 0)) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

    with _folder() as folder:
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--dir", str(folder), "--appendonly", "yes" if keeps else "no"]
        server = Server(
            command, url=f"redis://127.0.0.1:{port}/0", port=port, folder=folder, is_up=is_up
        )
        with _running(server):
            yield server


@contextlib.contextmanager
def postgres_server() -> Iterator[Server]:
    """A new PostgreSQL cluster with the empty database "test"; `url` is SQLAlchemy's, psycopg 3.

    It refuses to run as root: there it runs as the user "postgres", or "nobody".
    """
    psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed")
    initdb, program = (_program(name, "postgresql") for name in ("initdb", "postgres"))
    user = _other_user()
    port = free_port()

    def is_up() -> bool:
        try:
            psycopg.connect(f"{plain}/postgres", connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    plain = f"postgresql://test@127.0.0.1:{port}"
    with _folder(user) as folder:
        subprocess.run(
            [initdb, "-D", "data", "-U", "test", "-A", "trust", "-EUTF8", "--no-locale", "-N"],
            check=True,
            capture_output=True,
            cwd=folder,
            **_as_user(user),
        )
        command = [program, "-D", str(folder / "data"), "-p", str(port), "-k", str(folder)]
        # No fsync: a test outlives no crash of the machine.
        command += ["-h", "127.0.0.1", "-c", "fsync=off", "-c", "shared_buffers=16MB"]
        server = Server(
            command,
            url=f"postgresql+psycopg://test@127.0.0.1:{port}/test",
            port=port,
            folder=folder,
            is_up=is_up,
            stop_signal=signal.SIGINT,  # ends its clients' connections instead of waiting for them
            user=user,
        )
        with _running(server):
            with psycopg.connect(f"{plain}/postgres", autocommit=True) as connection:
                connection.execute("CREATE DATABASE test")
            yield server


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _running(server: Server) -> Iterator[None]:
    server.start()
    try:
        yield
    finally:
        server.stop()


@contextlib.contextmanager
def _folder(user: str | None = None) -> Iterator[Path]:
    """A new folder, `user`'s own. Not pytest's: other users may not enter those."""
    folder = Path(tempfile.mkdtemp(prefix="thriftroute-test-"))
    try:
        if user is not None:
            shutil.chown(folder, user)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _program(name: str, package: str) -> str:
    """Path of a program of that package of Debian's, or the test is skipped."""
    # Debian keeps PostgreSQL's programs off the path, a folder a version.
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = shutil.which(name, path=os.pathsep.join([*map(str, folders), os.environ["PATH"]]))
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install {package}")
    return found


def _other_user() -> str | None:
    """Whom to run as what refuses to run as root; None where we are not root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody")


def _as_user(user: str | None) -> dict[str, Any]:
    """Keywords for subprocess."""
    if user is None:
        return {}
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
