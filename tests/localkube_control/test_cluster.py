"""Whole clusters from the command line: started, broken and ended in every way."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]
DEADLINE = 30.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def until(ask: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        found = ask()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"never: {what}")


class Machine:
    """Runs localkube commands with their own state, and remembers what to clean up."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = free_port()
        self.environment = {**os.environ, "LOCALKUBE_HOME": str(home)}
        self.environment.pop("KUBECONFIG", None)

    @property
    def state(self) -> Path:
        return self.home / "default"

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-P", "-m", "localkube.main", *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def up(self, *options: str) -> subprocess.CompletedProcess[str]:
        result = self.run("up", "--detach", "--api-port", str(self.port), *options)
        assert result.returncode == 0, result.stderr + self.logs()
        return result

    def status(self) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(self.run("status", "-o", "json").stdout)
        return result

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        program = Path(sys.executable).parent / "kubectl"
        command = str(program) if program.exists() else "kubectl"
        result = subprocess.run(
            [command, "--kubeconfig", str(self.state / "kubeconfig"), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert result.returncode == 0, result.stderr + self.logs()
        return result.stdout

    def pid(self) -> int:
        return int((self.state / "localkube.pid").read_text().split()[0])

    def processes(self) -> list[psutil.Process]:
        """Every process whose command line names this state directory, and their children."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if str(self.home) in " ".join(process.cmdline()):
                    found[process.pid] = process
                    for child in process.children(recursive=True):
                        found[child.pid] = child
        found.pop(os.getpid(), None)
        return [p for p in found.values() if p.is_running()]

    def process(self, module: str) -> psutil.Process | None:
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if module in process.cmdline():
                    return process
        return None

    def logs(self) -> str:
        files = sorted((self.state / "log").glob("*.log"))
        return "".join(f"\n== {file.name}\n{file.read_text()[-3000:]}" for file in files)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path / "home")
    yield made
    made.run("down", "--now")
    until(lambda: not made.processes(), "all processes gone")


WEB = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: web, image: "busybox:1", command: [sleep, "10000"]}
"""


def test_a_whole_life(machine: Machine) -> None:
    """Up, pods, status, a second up, down, and up again with the same state."""
    result = machine.up()
    assert f"https://127.0.0.1:{machine.port}" in result.stdout
    assert "already running" in machine.run("up", "--detach").stdout
    machine.kubectl("apply", "-f", "-", stdin=WEB)
    machine.kubectl("rollout", "status", "deployment/web", "--timeout=20s")
    found = machine.status()
    assert found["ready"]
    assert found["nodes"] == [{"name": "node0", "ready": True}]
    assert [p["status"] for p in found["pods"] if p["namespace"] == "default"] == ["Running"]
    assert "default" in machine.run("status").stdout
    environment = machine.run("env").stdout
    assert f"export KUBECONFIG={machine.state / 'kubeconfig'}" in environment

    assert "is stopped" in machine.run("down").stdout
    assert machine.processes() == []
    assert str(machine.home) not in Path("/proc/mounts").read_text()
    assert not (machine.state / "localkube.pid").exists()
    assert machine.run("status").returncode == 3
    assert "not running" in machine.run("down").stdout

    machine.run("up", "--detach")
    machine.kubectl("rollout", "status", "deployment/web", "--timeout=20s")
    machine.run("reset")
    assert not machine.state.exists()


def test_killed_parts_come_back(machine: Machine) -> None:
    machine.up()
    machine.kubectl("apply", "-f", "-", stdin=WEB)
    machine.kubectl("rollout", "status", "deployment/web", "--timeout=20s")
    for module in (
        "localkube.supervisor.control_plane",
        "localkube.supervisor.node_process",
        "localkube.supervisor.init",
    ):
        victim = machine.process(module)
        assert victim is not None
        victim.kill()

        def replaced(old: int = victim.pid, module: str = module) -> bool:
            current = machine.process(module)
            return current is not None and current.pid != old and machine.status()["ready"]

        until(replaced, f"{module} restarted")
    machine.kubectl("rollout", "status", "deployment/web", "--timeout=20s")


def test_a_killed_supervisor_takes_everything_along(machine: Machine) -> None:
    machine.up()
    os.kill(machine.pid(), signal.SIGKILL)
    until(lambda: not machine.processes(), "all processes gone")
    assert machine.run("status").returncode == 3
    machine.up()  # the pid file that was left is no obstacle


def foreground(machine: Machine) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        machine.command("up", "--api-port", str(machine.port)),
        env=machine.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "is up at" in line:
            return process
    raise AssertionError(f"did not start: {machine.logs()}")


def test_ctrl_c_stops_cleanly(machine: Machine) -> None:
    process = foreground(machine)
    machine.kubectl("apply", "-f", "-", stdin=WEB)
    machine.kubectl("rollout", "status", "deployment/web", "--timeout=20s")
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, output + machine.logs()
    assert output.splitlines()[-1] == "stopped"
    assert machine.processes() == []


STUBBORN = """
apiVersion: v1
kind: Pod
metadata: {name: stubborn}
spec:
  terminationGracePeriodSeconds: 120
  containers:
  - name: c
    image: "bash:5"
    command: [bash, -c, "trap '' TERM; while true; do sleep 0.1; done"]
"""


def test_a_second_ctrl_c_does_not_wait(machine: Machine) -> None:
    process = foreground(machine)
    machine.kubectl("apply", "-f", "-", stdin=STUBBORN)
    machine.kubectl("wait", "--for=condition=Ready", "pod/stubborn", "--timeout=20s")
    os.kill(process.pid, signal.SIGINT)
    until(lambda: "stopping" in (machine.state / "localkube.pid").read_text(), "stopping")
    began = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=DEADLINE)
    assert time.monotonic() - began < 30  # far below the pod's 120 s of grace
    assert machine.processes() == []


def test_a_taken_port_is_explained(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", machine.port)):
        result = machine.run("up", "--detach", "--api-port", str(machine.port))
    assert result.returncode == 1
    assert f"port {machine.port} is taken" in result.stderr
    assert "--api-port" in result.stderr
    assert "Traceback" not in result.stderr + machine.logs()
    assert machine.processes() == []


def test_damaged_state_is_explained(machine: Machine) -> None:
    machine.state.mkdir(parents=True)
    (machine.state / "state.db").write_text("this is no database" * 100)
    result = machine.run("up", "--detach", "--api-port", str(machine.port))
    assert result.returncode == 1
    assert "state.db" in result.stderr
    assert "Traceback" not in result.stderr
    assert machine.processes() == []


def test_without_a_node_no_namespaces_are_needed(machine: Machine) -> None:
    machine.up("--no-node")
    plane = machine.process("localkube.supervisor.control_plane")
    assert plane is not None
    ours = os.readlink("/proc/self/ns/net")
    assert os.readlink(f"/proc/{plane.pid}/ns/net") == ours
    machine.kubectl("create", "configmap", "a", "--from-literal=x=1")
    os.kill(machine.pid(), signal.SIGKILL)
    until(lambda: not machine.processes(), "all processes gone")


def test_a_node_joins_another_api_server(machine: Machine) -> None:
    machine.up("--no-node")
    kubeconfig = str(machine.state / "kubeconfig")
    node = subprocess.Popen(
        machine.command("node", "--kubeconfig", kubeconfig, "--node-name", "guest"),
        env=machine.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until(lambda: {"name": "guest", "ready": True} in machine.status()["nodes"], "a node")
        machine.kubectl("apply", "-f", "-", stdin=WEB)
        machine.kubectl("rollout", "status", "deployment/web", "--timeout=20s")
        node.send_signal(signal.SIGTERM)
        assert node.wait(timeout=DEADLINE) == 0
    finally:
        if node.poll() is None:
            node.kill()
            node.wait()
