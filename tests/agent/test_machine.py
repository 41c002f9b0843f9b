"""A proxy on a machine without Kubernetes, from the files that ``x workload entry configure`` writes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from agent.control_plane import ControlPlane
from agent.world import Application, Container, eventually
from meltemi.adapters.agent_machine import MachineFilesError, machine_environment
from meltemi.agent import machine
from meltemi.agent.machine import MachineFacts
from meltemi.agent.settings import parse_settings
from meltemi.commands.workload import experimental
from meltemi.config.decode import load

FACTS = MachineFacts(
    group="vm",
    namespace="shop",
    service_account="keeper",
    labels={"app": "ware's", "version": "v2"},
    network="lan",
    settings={"concurrency": 1},
    discovery_address="127.0.0.1:15012",
    cluster_id="west",
    trust_domain="corp.example",
    register=True,
)


def write(folder: Path, facts: MachineFacts, root: str = "a root", token: str = "token-1") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / machine.ENVIRONMENT).write_text(machine.render_environment(facts))
    (folder / machine.MESH).write_text(yaml.safe_dump(machine.render_mesh(facts)))
    (folder / machine.ROOT).write_text(root)
    (folder / machine.TOKEN).write_text(token)
    return folder


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """Also by a shell, as Istio's own scripts do."""
    folder = write(tmp_path, FACTS)
    environment, problems = machine_environment(folder, {"POD_NAME": "host-1"})
    settings, wrong = parse_settings(environment)
    assert (problems, wrong) == ([], [])
    assert settings.identity == "spiffe://corp.example/ns/shop/sa/keeper"
    assert settings.node_id == "sidecar~127.0.0.1~host-1.shop~shop.svc.cluster.local"
    assert settings.config.discovery_address == "127.0.0.1:15012"
    assert settings.config.concurrency == 1
    assert settings.labels["app"] == "ware's"
    assert settings.labels[machine.CANONICAL_REVISION] == "v2"
    wanted = {"AUTO_REGISTER_GROUP": "vm", "NETWORK": "lan", "CLUSTER_ID": "west"}
    assert wanted.items() <= settings.metadata.items()
    assert "app" not in settings.metadata
    assert settings.dns_capture
    line = '. ./cluster.env; printf %s "$ISTIO_METAJSON_LABELS"'
    printed = subprocess.run(
        ["sh", "-c", line], cwd=folder, capture_output=True, text=True, check=True
    )
    assert '"app":"ware\'s"' in printed.stdout


def test_the_address_can_be_given_and_the_environment_comes_first(tmp_path: Path) -> None:
    folder = write(tmp_path, replace(FACTS, address="192.0.2.7", register=False))
    environment, _ = machine_environment(folder, {"SERVICE_ACCOUNT": "other"})
    assert environment["INSTANCE_IP"] == "192.0.2.7"
    assert environment["SERVICE_ACCOUNT"] == "other"
    assert "ISTIO_META_AUTO_REGISTER_GROUP" not in environment


def test_wrong_files_are_explained(tmp_path: Path) -> None:
    folder = write(tmp_path, FACTS)
    (folder / machine.ENVIRONMENT).write_text("# ours\nexport A='x y'\nB='open\nC D=1\n")
    environment, problems = machine_environment(folder, {})
    assert (environment["A"], environment["D"]) == ("x y", "1")
    assert [text.partition(" ")[0] for text in problems] == ["cluster.env:3:", "cluster.env:4:"]
    (folder / machine.MESH).write_text("{")
    with pytest.raises(MachineFilesError, match="not YAML"):
        machine_environment(folder, {})
    (folder / machine.MESH).unlink()
    done = subprocess.run(
        [sys.executable, "-m", "meltemi.programs.node_agent", "machine", str(folder)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "mesh.yaml: No such file or directory; meltemi x workload entry configure" in done.stderr


def test_a_group_is_printed_as_its_flags_say() -> None:
    flags = [
        "--name",
        "vm",
        "-n",
        "shop",
        "-l",
        "app=vm,tier=db",
        "-l",
        "version=v1",
        "-a",
        "note=x",
        "-p",
        "http=8080",
        "-s",
        "keeper",
    ]
    done = CliRunner().invoke(experimental, ["workload", "group", "create", *flags])
    assert done.exit_code == 0, done.output
    config, findings = load(yaml.safe_load(done.output))
    assert config is not None
    assert findings == []
    spec = config.spec
    assert dict(spec.metadata.labels) == {"app": "vm", "tier": "db", "version": "v1"}
    assert dict(spec.metadata.annotations) == {"note": "x"}
    assert (dict(spec.template.ports), spec.template.service_account) == ({"http": 8080}, "keeper")


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ("--name vm", "needs a namespace"),
        ("-n shop", "needs a name"),
        ("--name vm -n shop -l app", "write name=value"),
        ("--name vm -n shop -p http=web", "a port is a number"),
        ("--name vm -n shop -l app=a:b", "spec.metadata.labels"),
    ],
)
def test_a_wrong_group_is_refused(flags: str, why: str) -> None:
    done = CliRunner().invoke(experimental, ["workload", "group", "create", *flags.split()])
    assert done.exit_code
    assert why in done.output


# --- with a real Envoy ------------------------------------------------------------------------------------


@pytest.fixture
def control_plane() -> Iterator[ControlPlane]:
    plane = ControlPlane()
    plane.start()
    yield plane
    plane.stop()


@pytest.fixture
def application() -> Iterator[Application]:
    app = Application()
    yield app
    app.close()


@pytest.mark.envoy
@pytest.mark.covers("MeshConfig.defaultConfig.readinessProbe")
def test_a_machine_starts_from_its_files_and_tells_that_it_is_well(
    tmp_path: Path, control_plane: ControlPlane, application: Application
) -> None:
    """With the probe in mesh.yaml, where ``configure`` writes the group's."""
    container = Container(tmp_path, control_plane)
    facts = replace(
        FACTS,
        trust_domain="cluster.local",
        discovery_address=f"127.0.0.1:{control_plane.port}",
        probe={"httpGet": {"port": application.port, "path": "/broken"}, "failureThreshold": 1},
        dns_capture=False,
    )
    folder = write(tmp_path / "machine", facts, control_plane.authority.pem)
    try:
        container.start_machine(folder)
        container.await_ready()
        eventually(lambda: control_plane.reports, f"a report\n{container.text()}")
        assert "500" in control_plane.reports[0]
        node = control_plane.nodes[-1]
        assert node.metadata["AUTO_REGISTER_GROUP"] == "vm"
        assert node.metadata["LABELS"]["app"] == "ware's"
        assert node.metadata["PROXY_CONFIG"]["readinessProbe"]["httpGet"]["path"] == "/broken"
        assert control_plane.tokens == ["Bearer token-1"]
    finally:
        container.close()


@pytest.mark.envoy
def test_a_machine_needs_its_token_once(tmp_path: Path, control_plane: ControlPlane) -> None:
    """Later its certificate proves who it is, to the authority and for Envoy's stream, on the port that takes those."""
    container = Container(tmp_path, control_plane)
    port = control_plane.mtls_port
    facts = replace(
        FACTS,
        trust_domain="cluster.local",
        discovery_address=f"127.0.0.1:{control_plane.port}",
        mtls_address=f"127.0.0.1:{port}",
        dns_capture=False,
    )
    control_plane.life_s = 40.0
    container.environment = {"SECRET_GRACE_PERIOD_RATIO": "0.95"}
    folder = write(tmp_path / "machine", facts, control_plane.authority.pem)
    try:
        container.start_machine(folder)
        container.await_ready()
        (folder / machine.TOKEN).unlink()
        first = container.serial()
        eventually(lambda: container.serial() != first, f"another certificate\n{container.text()}")
        assert control_plane.tokens[0] == "Bearer token-1"
        assert set(control_plane.tokens[1:]) == {""}
        assert set(control_plane.stream_tokens) == {""}
        assert set(control_plane.callers) == {"spiffe://cluster.local/ns/shop/sa/keeper"}
    finally:
        container.close()
