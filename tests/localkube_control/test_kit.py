"""Work queues, guarded tasks and host sockets."""

import asyncio
import errno
import os
import socket
import subprocess
import sys

import pytest

from localkube.kit.hostsockets import ENVIRONMENT_VARIABLE, HostSockets, HostSocketServer
from localkube.kit.tasks import Tasks, backoff
from localkube.kit.workqueue import WorkQueue


async def eventually(ask: object) -> None:
    async with asyncio.timeout(10):
        while not ask():  # type: ignore[operator]
            await asyncio.sleep(0.005)


async def test_a_key_is_processed_once_for_many_additions_and_never_twice_at_a_time() -> None:
    running, most, done = 0, 0, 0
    gate = asyncio.Event()

    async def reconcile(key: str) -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1
        done += 1

    queue = WorkQueue("test", reconcile, workers=3)
    for _ in range(10):
        queue.add("a")
    queue.start()
    await eventually(lambda: running == 1)
    for _ in range(10):
        queue.add("a")  # changed while it is processed: once more, afterwards
    gate.set()
    await eventually(lambda: done == 2 and queue.idle())
    assert most == 1
    await queue.close()


async def test_a_failing_key_is_retried_and_holds_up_nobody() -> None:
    tries: dict[str, int] = {}

    async def reconcile(key: str) -> None:
        tries[key] = tries.get(key, 0) + 1
        if key == "bad" and tries[key] < 3:
            raise ValueError("not yet")

    queue = WorkQueue("test", reconcile, workers=1)
    queue.start()
    queue.add("bad")
    queue.add("good")
    await eventually(lambda: tries.get("good") == 1)
    await eventually(lambda: tries.get("bad") == 3)
    await queue.close()


async def test_a_key_can_ask_to_be_seen_again() -> None:
    seen = 0

    async def reconcile(key: str) -> float | None:
        nonlocal seen
        seen += 1
        return 0.01 if seen < 3 else None

    queue = WorkQueue("test", reconcile)
    queue.start()
    queue.add("a")
    await eventually(lambda: seen == 3)
    await queue.close()


async def test_a_failed_task_starts_again_if_it_shall() -> None:
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise RuntimeError("broken")

    async with Tasks("test") as tasks:
        await tasks.spawn("work", work, restart=True)
    assert runs == 3


def test_backoff_grows_within_its_bounds() -> None:
    for attempt in range(40):
        full = min(30.0, 0.1 * 2**attempt)
        assert full / 2 <= backoff(attempt) <= full


class TestHostSockets:
    @pytest.fixture
    def sockets(self, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
        server = HostSocketServer()
        server.start()
        monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(server.client_descriptor))
        client = HostSockets.from_environment()
        assert client is not None
        yield client
        server.stop()

    def test_a_listener_survives_its_user_and_answers_again(self, sockets: HostSockets) -> None:
        first = sockets.listen("127.0.0.1", 0)
        address = first.getsockname()
        first.close()
        # The connection waits in the backlog for the next user.
        with socket.create_connection(address, timeout=5) as caller:
            again = sockets.listen("127.0.0.1", 0)
            again.setblocking(True)
            accepted, _ = again.accept()
            accepted.sendall(b"hello")
            assert caller.recv(5) == b"hello"
            accepted.close()
            again.close()
        sockets.close("127.0.0.1", 0)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=5)

    def test_errors_keep_their_errno(self, sockets: HostSockets) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            with pytest.raises(OSError, match="in use") as error:
                sockets.listen("127.0.0.1", taken.getsockname()[1])
            assert error.value.errno == errno.EADDRINUSE

    def test_names_are_resolved(self, sockets: HostSockets) -> None:
        assert (socket.AF_INET, "127.0.0.1", 80) in sockets.resolve("localhost", 80)

    def test_other_processes_can_ask_at_the_same_time(self, sockets: HostSockets) -> None:
        program = (
            "from localkube.kit.hostsockets import HostSockets\n"
            "s = HostSockets.from_environment()\n"
            "print(sum(s.new().family == 2 for _ in range(200)))"
        )
        descriptor = int(os.environ[ENVIRONMENT_VARIABLE])
        children = [
            subprocess.Popen(
                [sys.executable, "-c", program],
                pass_fds=[descriptor],
                stdout=subprocess.PIPE,
            )
            for _ in range(2)
        ]
        for _ in range(200):
            sockets.new().close()
        assert [child.communicate(timeout=30)[0].strip() for child in children] == [b"200"] * 2

    def test_an_ended_service_is_an_error_not_a_hang(self, sockets: HostSockets) -> None:
        server = HostSocketServer()
        client = HostSockets(socket.socket(fileno=os.dup(server.client_descriptor)))
        server.start()
        server.stop()
        with pytest.raises(OSError, match=r"."):
            client.new()
