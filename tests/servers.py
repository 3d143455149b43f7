"""Real servers on 127.0.0.1 for tests: MLflow, PostgreSQL, and a proxy that does to requests what networks do.

Everything is started by the test that needs it and is gone, with its processes, when the test ends.
"""

import contextlib
import glob
import os
import pwd
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

START_SECONDS = 120.0  # a server's start takes 5 to 20 s; two busy cores may need more


def free_port() -> int:
    """Return a port below the range that outgoing connections take theirs from, so that it can be bound again."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port


class MlflowServer:
    """`mlflow server` with artifacts that go through it over HTTP."""

    def __init__(self, backend: str, folder: Path):
        self.backend, self.folder, self.port = backend, folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        folder.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        command = ["server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", self.backend]
        return [*command, "--serve-artifacts", "--artifacts-destination", str(self.folder / "artifacts")]

    def environment(self) -> dict[str, str]:
        return {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", *self.command()]
        environment = os.environ | self.environment()
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"mlflow server did not start: {(self.folder / 'server.log').read_text()[-2000:]}")
            time.sleep(0.1)

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def kill(self) -> None:
        """Kill it with its workers, in the middle of whatever they do."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        self.kill()
        self.start()


POSTGRES = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: int(path.split("/")[4]))


class Postgres:
    """A PostgreSQL cluster of its own, with PostgreSQL's own settings for what survives a crash.

    Its superuser comes in without a password unless one is given.
    """

    def __init__(self, user: str = "nlt", password: str = "") -> None:
        self.port = free_port()
        # Neither in pytest's folder, which only its owner may enter, nor deep: a socket's path has 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="nlt-pg-", dir="/tmp"))
        self._as: list[str] = []
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            try:
                owner = pwd.getpwnam("postgres")
            except KeyError:
                owner = pwd.getpwnam("nobody")
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
            self._as = ["setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]
        auth = ["-A", "trust"]
        if password:
            (self.folder / "password").write_text(password)
            auth = ["-A", "scram-sha-256", "--pwfile", str(self.folder / "password")]
        self._run("initdb", *auth, "-U", user, "-E", "UTF8", "--locale=C", "-D", str(self.folder / "data"))

    @property
    def uri(self) -> str:
        return f"postgresql+psycopg://nlt@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories={self.folder}"
        self._control("start", "-o", options, "-l", str(self.folder / "log"))

    def restart(self, mode: str) -> None:
        """Restart it: `fast` ends the connections, `immediate` is a crash with recovery from the write-ahead log."""
        self._control("restart", "-m", mode, "-l", str(self.folder / "log"))

    def stop(self) -> None:
        self._control("stop", "-m", "immediate")

    def close(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):  # it may be down
            self.stop()
        shutil.rmtree(self.folder)

    def _control(self, *args: str) -> None:
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-w", *args)

    def _run(self, program: str, *args: str) -> None:
        command = [*self._as, f"{POSTGRES[-1]}/{program}", *args]
        # Files instead of pipes: the server that pg_ctl leaves behind would keep a pipe open.
        with tempfile.TemporaryFile() as told:
            try:
                subprocess.run(command, cwd="/", check=True, stdout=told, stderr=told, timeout=START_SECONDS)
            except subprocess.CalledProcessError as error:
                told.seek(0)
                error.add_note(told.read().decode())
                raise


FAULTS = ("refuse", "delay", "cut_request", "cut_response", "error500", "lost_response", "black_hole")


class Proxy:
    """Stands before a server and passes HTTP requests on, or does what `mode` says instead.

    pass            what a proxy does
    refuse          nothing listens; connections that are open are cut
    delay           each request waits for `delay` seconds first
    cut_request     half of the request reaches the server, then both connections are reset
    cut_response    the server has done it all; half of its answer reaches the client, then a reset
    error500        the answer is 500, the server hears nothing
    lost_response   the server has done it all; the client sees a reset instead of the answer
    black_hole      the request is taken and never answered; reset when the mode changes

    Only requests with `only` in their first line meet it. `counts` tells how many (of `refuse`: periods) met each fault.
    """

    def __init__(self, target_port: int):
        self.target_port, self.port = target_port, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.delay = 1.0
        self.only = b""
        self.counts: Counter[str] = Counter()
        self._mode, self._changed = "pass", threading.Event()
        self._lock = threading.Lock()
        self._clients: set[socket.socket] = set()
        self._listen()

    @property
    def mode(self) -> str:
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        assert mode in ("pass", *FAULTS), mode
        if mode == self._mode:
            return
        was, self._mode = self._mode, mode
        self._changed.set()  # ends what is held
        self._changed = threading.Event()
        if mode == "refuse":
            self.counts["refuse"] += 1
            self._close_listener()
            with self._lock:
                for client in self._clients:
                    _reset(client)
        elif was == "refuse":
            self._listen()

    def close(self) -> None:
        self.mode = "refuse"

    def _listen(self) -> None:
        deadline = time.monotonic() + 10
        while True:
            self._listener = socket.socket()
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                self._listener.bind(("127.0.0.1", self.port))
                break
            except OSError:  # its last life is not quite over
                self._listener.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        self._listener.listen(64)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _close_listener(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept, which would keep it open
        self._listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with self._lock:
            self._clients.add(client)
        try:
            with contextlib.suppress(OSError), client.makefile("rb") as file:
                while request := _read_request(file):
                    self._handle(client, request)
        finally:
            with self._lock:
                self._clients.discard(client)
            client.close()

    def _handle(self, client: socket.socket, request: bytes) -> None:
        mode, changed = self._mode, self._changed
        if mode == "refuse":  # it came in just before
            return _reset(client)
        if self.only not in request.partition(b"\r\n")[0]:
            mode = "pass"
        if mode != "pass":
            self.counts[mode] += 1
        if mode == "error500":
            body = b"the proxy says no"
            client.sendall(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            return None
        if mode == "black_hole":
            changed.wait()
            return _reset(client)
        if mode == "delay":
            changed.wait(self.delay)
        try:
            with socket.create_connection(("127.0.0.1", self.target_port)) as server:
                if mode == "cut_request":
                    server.sendall(request[: len(request) // 2])
                    _reset(server)
                    return _reset(client)
                server.sendall(request)
                answer = _read_answer(server)
        except OSError:
            answer = b""
        if not answer or mode == "lost_response":  # no answer: the server is down
            return _reset(client)
        if mode == "cut_response":
            client.sendall(answer[: len(answer) // 2])
            return _reset(client)
        client.sendall(answer)
        return None


def _read_request(file: object) -> bytes:
    """Return a whole request that asks the server to close the connection after it; b"" at the end."""
    head, length = [], 0
    while (line := file.readline()) not in (b"\r\n", b""):  # type: ignore[attr-defined]
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
        assert name.lower() != b"transfer-encoding", "the proxy reads no chunked requests"
        if name.lower() != b"connection":
            head.append(line)
    if not head:
        return b""
    return b"".join([*head, b"Connection: close\r\n\r\n", file.read(length)])  # type: ignore[attr-defined]


def _read_answer(server: socket.socket) -> bytes:
    """Return an answer as one after which the connection stays open."""
    parts = []
    while part := server.recv(1 << 16):
        parts.append(part)
    head, found, body = b"".join(parts).partition(b"\r\n\r\n")
    if not found:
        return b""
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith((b"connection:", b"content-length:"))]
    if not any(line.lower().startswith(b"transfer-encoding:") for line in lines):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _reset(connection: socket.socket) -> None:
    """Cut a connection with RST; `with` or `close` finish it."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)  # wakes a thread that reads
        connection.close()


@contextlib.contextmanager
def weather(
    proxy: Proxy,
    seed: int,
    kinds: tuple[str, ...] = FAULTS,
    blows: tuple[tuple[float, Callable[[], None]], ...] = (),
    rounds: int = 1_000_000,
) -> Iterator[None]:
    """Switch the proxy's mode every few hundred milliseconds, by chance from `seed`, until the block ends; then pass.

    A fault stays until a request has met it: a client that pauses after failures would miss most of them.

    Args:
        proxy: what to switch.
        seed: of the schedule.
        kinds: which faults come, each once before one comes again.
        blows: (seconds from the start, what is then done once), for example the restart of a server.
        rounds: how often each kind comes at most; then the weather is fine.
    """
    chance, over, failed = random.Random(seed), threading.Event(), []
    began, waiting = time.monotonic(), sorted(blows, key=lambda blow: blow[0])

    def blow() -> None:
        try:
            for _ in range(rounds):
                for kind in chance.sample(kinds, len(kinds)):
                    if over.is_set():
                        return
                    met = proxy.counts[kind]
                    proxy.delay = chance.uniform(0.1, 1.0)
                    proxy.mode = kind
                    over.wait(chance.uniform(0.1, 0.6))
                    while proxy.counts[kind] == met and not over.wait(0.02):
                        pass
                    proxy.mode = "pass"
                    if waiting and time.monotonic() - began > waiting[0][0]:
                        waiting.pop(0)[1]()
                    over.wait(chance.uniform(0.05, 0.3))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=blow)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        proxy.mode = "pass"
    if failed:
        raise failed[0]
    assert not waiting, "the run was over before everything had been done to it"
