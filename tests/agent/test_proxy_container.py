"""The agent with a real Envoy, a real CA and a real ADS server."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from cryptography import x509

from agent.control_plane import Authority, ControlPlane
from agent.world import Application, Container, eventually
from meltemi.adapters.envoy_process import find_envoy
from meltemi.model.names import BOOTSTRAP_TYPE

pytestmark = pytest.mark.envoy


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


@pytest.fixture
def container(tmp_path: Path, control_plane: ControlPlane) -> Iterator[Container]:
    box = Container(tmp_path, control_plane)
    yield box
    box.close()


def test_a_proxy_becomes_ready_and_identifies_itself(
    container: Container, control_plane: ControlPlane
) -> None:
    """Certificates come first, then Envoy with its token, its node and private files."""
    container.start_ready()
    assert container.get(container.health, "/healthz/ready") == (200, "LIVE\n")
    assert control_plane.tokens == ["Bearer token-1"]
    assert control_plane.stream_tokens[-1] == "Bearer token-1"
    node = control_plane.nodes[-1]
    assert node.id == "sidecar~127.0.0.1~reviews-v1-abc.bookinfo~bookinfo.svc.cluster.local"
    assert node.metadata["LABELS"]["app"] == "reviews"
    assert node.metadata["WORKLOAD_NAME"] == "reviews-v1"
    for secret in (
        container.credentials / "sds-default.json",
        container.directory / "proxy" / "sds-xds-token.json",
    ):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert "token-1" not in container.text() and "PRIVATE KEY" not in container.text()


def test_the_resident_agent_stays_small(container: Container) -> None:
    """The agent of a ready proxy has less than 30 MB resident."""
    container.start_ready()
    assert container.process
    agent = psutil.Process(container.process.pid)
    container.get(container.status, "/stats/prometheus")
    assert agent.memory_info().rss < 30 * 1024 * 1024
    assert [child.name() for child in agent.children(recursive=True)] == ["envoy"]


def test_a_crashed_envoy_comes_back_with_its_certificate(
    container: Container, control_plane: ControlPlane, application: Application
) -> None:
    """SIGKILL of Envoy costs a restart, and no certificate request."""
    container.serve(application)
    container.start_ready()
    serial = container.serial()
    first = container.debug()["envoy"]["pid"]
    os.kill(first, signal.SIGKILL)
    eventually(lambda: container.debug()["envoy"]["epoch"] == 1, "second start")
    container.await_ready()
    assert container.get(container.inbound, "/")[1] == "hello"
    assert container.serial() == serial
    assert control_plane.requests == 1


def test_a_restarted_container_keeps_its_certificate(
    container: Container, control_plane: ControlPlane
) -> None:
    """A new agent in the same pod uses the certificate it finds."""
    container.start_ready()
    envoy = container.debug()["envoy"]["pid"]
    container.signal(signal.SIGKILL)
    container.wait()
    eventually(lambda: not psutil.pid_exists(envoy), "Envoy does not outlive its agent")
    container.start_ready()
    assert control_plane.requests == 1
    assert "kept the certificate of an earlier run" in container.text()


def test_sigterm_loses_no_request(container: Container, application: Application) -> None:
    """A request in flight at SIGTERM is answered, then everything ends with code 0."""
    container.environment |= {
        "EXIT_ON_ZERO_ACTIVE_CONNECTIONS": "true",
        "MINIMUM_DRAIN_DURATION": "0s",
    }
    container.serve(application)
    container.start_ready()
    answers: list[tuple[int, str]] = []
    caller = threading.Thread(
        target=lambda: answers.append(container.get(container.inbound, "/slow"))
    )
    caller.start()
    assert application.entered.wait(30)
    envoy = container.debug()["envoy"]["pid"]
    container.signal()
    eventually(lambda: container.get(container.health, "/healthz/ready")[0] == 503, "draining")
    connection = http.client.HTTPConnection("127.0.0.1", container.inbound, timeout=30)
    connection.request("GET", "/")
    late = connection.getresponse()
    assert (late.read(), late.status, late.getheader("connection")) == (b"hello", 200, "close")
    connection.close()
    assert not answers and psutil.pid_exists(envoy)
    application.release.set()
    caller.join(30)
    assert answers == [(200, "hello")]
    assert container.wait() == 0
    assert not psutil.pid_exists(envoy)


@pytest.mark.covers("MeshConfig.defaultConfig.terminationDrainDuration")
def test_a_drain_ends_when_its_time_is_over(container: Container, application: Application) -> None:
    """Whatever is still under way then: a request without an end does not keep a pod."""
    container.serve(application)
    container.start_ready()
    lost: list[str] = []

    def call() -> None:
        try:
            container.get(container.inbound, "/slow")
        except (OSError, http.client.HTTPException) as error:
            lost.append(type(error).__name__)

    caller = threading.Thread(target=call)
    caller.start()
    assert application.entered.wait(30)
    container.signal()
    assert container.wait() == 0
    caller.join(30)
    assert lost and not application.release.is_set()


def test_quit_and_drain_are_for_the_pod_itself(
    container: Container, application: Application
) -> None:
    """``/drain`` fails readiness and keeps serving; ``/quitquitquit`` ends the proxy cleanly."""
    container.serve(application)
    container.start_ready()
    assert container.get(container.status, "/drain")[0] == 405
    assert container.get(container.status, "/drain", "POST") == (200, "OK\n")
    eventually(lambda: container.get(container.health, "/healthz/ready")[0] == 503, "drained")
    assert container.get(container.inbound, "/")[1] == "hello"
    assert container.get(container.status, "/quitquitquit", "POST")[0] == 200
    assert container.wait() == 0


def test_certificates_are_renewed_in_time(
    container: Container, control_plane: ControlPlane
) -> None:
    """A short-lived certificate is replaced at half its life, without an Envoy restart."""
    control_plane.life_s = 2.0
    container.start_ready()
    first = container.serial()
    control_plane.life_s = 3600.0
    eventually(lambda: container.serial() != first, "renewal")
    assert container.debug()["envoy"]["epoch"] == 0


def test_a_renewal_reaches_new_connections_and_ends_no_old_one(
    container: Container, control_plane: ControlPlane, application: Application
) -> None:
    """Envoy notices the new file by itself; requests on a connection of before go on."""

    def ask(connection: ssl.SSLSocket) -> bool:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: app\r\n\r\n")
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.read() == b"hello"

    def shown(connection: ssl.SSLSocket) -> int:
        der = connection.getpeercert(binary_form=True)
        assert der
        return x509.load_der_x509_certificate(der).serial_number

    control_plane.life_s = 6.0
    container.serve(application, tls=True)
    container.start_ready()
    first = container.serial()
    with container.connect_tls() as old:
        assert ask(old) and shown(old) == first
        control_plane.life_s = 3600.0
        eventually(lambda: container.serial() != first, "renewal")

        def fresh() -> bool:
            with container.connect_tls() as new:
                return ask(new) and shown(new) == container.serial()

        eventually(fresh, "the new certificate on new connections")
        assert ask(old)
    assert container.debug()["envoy"]["epoch"] == 0


def test_a_proxy_takes_few_inotify_instances(
    container: Container, application: Application
) -> None:
    """Three: certificate, roots, token. The kernel gives all proxies of a user 128 together."""
    container.serve(application, tls=True)
    container.start_ready()
    assert container.process
    agent = psutil.Process(container.process.pid)
    taken = 0
    for process in (agent, *agent.children(recursive=True)):
        for entry in Path(f"/proc/{process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # a connection that has ended meanwhile
                taken += str(entry.readlink()) == "anon_inode:inotify"
    assert taken == 3


def test_a_refused_renewal_keeps_the_old_certificate(
    container: Container, control_plane: ControlPlane
) -> None:
    """While istiod refuses, the present certificate stays, the log says why, and asking goes on."""
    control_plane.life_s = 8.0
    container.start_ready()
    first = container.serial()
    control_plane.refuse = grpc.StatusCode.UNAUTHENTICATED
    eventually(
        lambda: "renewal failed, the present certificate stays" in container.text(), "failure"
    )
    assert "does not accept the token" in container.text()
    assert container.serial() == first
    control_plane.refuse, control_plane.life_s = None, 3600.0
    eventually(lambda: container.serial() != first, "recovery")


def test_an_absent_istiod_is_waited_for(tmp_path: Path) -> None:
    """Without istiod the agent says what is wrong, keeps asking, and succeeds when it appears."""
    plane = ControlPlane()
    plane.start()
    plane.stop()
    container = Container(tmp_path, plane)
    try:
        container.start()
        eventually(lambda: "no certificate yet" in container.text(), "complaint")
        assert "Connection refused" in container.text()
        assert container.get(container.status, "/healthz/ready")[0] == 503
        plane.start()
        container.await_ready()
    finally:
        container.close()
        plane.stop()


def test_traffic_flows_while_istiod_is_down(
    container: Container, control_plane: ControlPlane, application: Application
) -> None:
    """A stopped istiod changes nothing for a running Envoy, which reconnects later."""
    container.serve(application)
    container.start_ready()
    control_plane.stop()
    eventually(
        lambda: (
            "control_plane.connected_state: 0"
            in container.get(container.admin, "/stats?filter=connected_state")[1]
        ),
        "disconnect",
    )
    assert container.get(container.inbound, "/") == (200, "hello")
    assert container.get(container.health, "/healthz/ready")[0] == 200
    streams = len(control_plane.stream_tokens)
    control_plane.start()
    eventually(lambda: len(control_plane.stream_tokens) > streams, "reconnect")


def test_a_rotated_token_reaches_the_next_stream(
    container: Container, control_plane: ControlPlane
) -> None:
    """Envoy authenticates its next stream with the token that a kubelet put in place meanwhile."""
    container.start_ready()
    fresh = container.token.with_name("fresh")
    fresh.write_text("token-2\n")
    fresh.replace(container.token)
    sds = container.directory / "proxy" / "sds-xds-token.json"
    eventually(lambda: "token-2" in sds.read_text(), "SDS file")
    control_plane.stop()
    control_plane.start()
    eventually(lambda: control_plane.stream_tokens[-1] == "Bearer token-2", "new token")


def test_a_new_root_is_trusted_at_once(container: Container, control_plane: ControlPlane) -> None:
    """A changed root ConfigMap adds the root to the bundle and asks for a new certificate."""
    container.start_ready()
    new = Authority().pem
    container.root.write_text(new + control_plane.authority.pem)
    eventually(lambda: new in container.roots(), "new root")
    assert control_plane.authority.pem in container.roots()
    eventually(lambda: control_plane.requests == 2, "new certificate")


def test_roots_of_the_proxys_own_are_trusted_too(
    container: Container, control_plane: ControlPlane
) -> None:
    """Behind the mesh's, and still there when those change."""
    own, new = Authority().pem, Authority().pem
    container.config["caCertificatesPem"] = [own]
    container.start_ready()
    assert control_plane.authority.pem in container.roots() and own in container.roots()
    container.root.write_text(new + control_plane.authority.pem)
    eventually(lambda: new in container.roots(), "new root")
    assert own in container.roots()


def test_a_certificate_for_someone_else_is_refused(
    container: Container, control_plane: ControlPlane
) -> None:
    """The agent does not use an identity that it did not ask for."""
    control_plane.impostor = "spiffe://cluster.local/ns/bookinfo/sa/admin"
    container.start()
    eventually(
        lambda: "istiod signed spiffe://cluster.local/ns/bookinfo/sa/admin" in container.text(),
        "refusal",
    )
    assert not container.credentials.exists()


def test_an_istiod_of_another_root_is_refused(container: Container) -> None:
    """A server that the mesh's root does not verify gets neither token nor trust."""
    container.root.write_text(Authority().pem)
    container.start()
    eventually(lambda: "no certificate yet" in container.text(), "refusal")
    assert container.control_plane.tokens == []


def test_metrics_of_envoy_application_and_agent_are_merged(
    container: Container, application: Application
) -> None:
    """One scrape has Istio's names, ``unknown`` for absent labels, and the application's own lines."""
    container.environment["ISTIO_PROMETHEUS_ANNOTATIONS"] = (
        f'{{"scrape": "true", "path": "/metrics", "port": "{application.port}"}}'
    )
    container.serve(application)
    container.start_ready()
    assert container.get(container.inbound, "/")[0] == 200
    line = (
        'istio_requests_total{reporter="destination",source_workload="unknown",'
        'grpc_response_status="",destination_workload="reviews-v1"} 1'
    )

    def scrape() -> str:
        text = container.get(container.status, "/stats/prometheus")[1]
        return text if line in text else ""

    text = eventually(scrape, "request metric")
    lines = text.splitlines()
    assert "app_requests_total 7" in lines
    assert "istio_agent_scrape_failures_total" in text
    assert "# TYPE istio_requests_total counter" in lines
    raw = container.get(container.prometheus, "/stats/prometheus")[1]
    assert "envoy_istio_requests_total" in raw
    assert container.get(container.prometheus, "/quitquitquit")[0] == 404


def test_a_dead_application_does_not_spoil_the_scrape(container: Container) -> None:
    """Envoy's part is there, and the failure is counted."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    container.environment["ISTIO_PROMETHEUS_ANNOTATIONS"] = (
        f'{{"scrape": "true", "port": "{port}"}}'
    )
    container.start_ready()
    status, text = container.get(container.status, "/metrics")
    assert status == 200 and "envoy_server_live" in text
    text = container.get(container.status, "/metrics")[1]
    assert 'istio_agent_scrape_failures_total{type="application"}' in text


def test_envoy_answers_the_applications_probes(
    container: Container, application: Application
) -> None:
    """HTTP probes reach the application with their path and headers; TCP probes follow its port."""
    mute = socket.socket()  # bound, so that nobody else takes the port, and not listening yet
    mute.bind(("127.0.0.1", 0))
    closed = mute.getsockname()[1]
    http_get = {
        "path": "/health?full=1",
        "port": application.port,
        "httpHeaders": [
            {"name": "Host", "value": "reviews.local"},
            {"name": "X-Probe", "value": "1"},
        ],
    }
    probes = {
        "/app-health/reviews/livez": {"httpGet": http_get},
        "/app-health/reviews/readyz": {"httpGet": {"path": "/broken", "port": application.port}},
        "/app-health/reviews/startupz": {"httpGet": {"path": "/moved", "port": application.port}},
        "/app-health/other/livez": {"tcpSocket": {"port": application.port}, "periodSeconds": 1},
        "/app-health/other/readyz": {"tcpSocket": {"port": closed}, "periodSeconds": 1},
    }
    container.environment["ISTIO_KUBE_APP_PROBERS"] = json.dumps(probes)
    container.start_ready()

    def probe(path: str) -> int:
        return container.get(container.health, path)[0]

    assert probe("/app-health/reviews/livez") == 200
    path, headers = application.seen[-1]
    assert (path, headers["host"], headers["x-probe"]) == ("/health?full=1", "reviews.local", "1")
    assert probe("/app-health/reviews/readyz") == 500
    assert probe("/app-health/reviews/startupz") == 302
    eventually(lambda: probe("/app-health/other/livez") == 200, "open port")
    assert probe("/app-health/other/readyz") == 503
    mute.listen()
    eventually(lambda: probe("/app-health/other/readyz") == 200, "port opened")
    mute.close()
    eventually(lambda: probe("/app-health/other/readyz") == 503, "port closed")


def test_a_taken_port_is_named(container: Container) -> None:
    """The agent ends with a message that names the port's trouble, not with a traceback."""
    with socket.create_server(("", container.status)):
        container.start()
        assert container.wait() == 1
    assert "Address already in use" in container.text()
    assert "Traceback" not in container.text()


def test_a_missing_envoy_is_named(container: Container, tmp_path: Path) -> None:
    """Without an Envoy binary the message says where one is looked for."""
    (tmp_path / "envoy-not-here").touch()
    code = "import sys; sys.path = [p for p in sys.path if 'site-packages' not in p]"
    run = subprocess.run(
        [
            sys.executable,
            "-S",
            "-c",
            f"{code}; sys.path.insert(0, {str(Path('src').resolve())!r});"
            "from meltemi.adapters.envoy_process import *\n"
            "try: find_envoy()\nexcept EnvoyMissingError as e: print(e)",
        ],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "envoy-server" in run.stdout, run.stderr


def test_wait_and_request_speak_to_the_proxy(container: Container) -> None:
    """The subcommands that hooks use: ``wait`` until ready, ``request`` an admin page."""
    container.start()
    agent = [sys.executable, "-m", "meltemi.programs.node_agent"]
    url = f"http://localhost:{container.health}/healthz/ready"
    waited = subprocess.run(
        [*agent, "wait", "--url", url, "--periodMillis", "20"], capture_output=True, timeout=60
    )
    assert waited.returncode == 0, waited.stderr
    failed = subprocess.run(
        [*agent, "wait", "--url", "http://localhost:1/", "--timeoutSeconds", "0"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert failed.returncode == 1 and "not ready" in failed.stderr


def test_a_mesh_may_change_its_trust_domain(
    container: Container, control_plane: ControlPlane
) -> None:
    """istiod signs the same account in the mesh's present trust domain, whatever the pod was told when it was made."""
    control_plane.impostor = "spiffe://new.example/ns/bookinfo/sa/bookinfo-reviews"
    container.start_ready()
    assert control_plane.requests == 1


def _patched(plane: ControlPlane, container: Container, **patches: object) -> list[str]:
    """Names of the runtime layers of an Envoy that started with these patches on offer."""
    plane.resources[BOOTSTRAP_TYPE] = {
        f"0000/MERGE/istio-system/{name}": {"layeredRuntime": {"layers": [layer]}}
        for name, layer in patches.items()
    }
    container.environment["BOOTSTRAP_XDS_AGENT"] = "true"
    container.start_ready()
    layers = json.loads(container.get(container.admin, "/runtime")[1])["layers"]
    return [str(layer) for layer in layers]


def test_patches_of_the_bootstrap_are_asked_for(
    container: Container, control_plane: ControlPlane
) -> None:
    """With the pod's token; the node says that it takes them."""
    layer = {"name": "patched", "staticLayer": {"x": 1}}
    assert _patched(control_plane, container, good=layer) == ["global config", "admin", "patched"]
    assert "bootstrap patched by 0000/MERGE/istio-system/good" in container.text()
    assert control_plane.stream_tokens[0] == "Bearer token-1"
    assert control_plane.nodes[0].metadata["BOOTSTRAP_XDS_AGENT"] == "true"


def test_a_patch_that_envoy_refuses_stops_nobody(
    container: Container, control_plane: ControlPlane
) -> None:
    """Two layers of one name are an error, which Envoy would not start with."""
    layer = {"name": "admin", "staticLayer": {"x": 1}}
    assert _patched(control_plane, container, bad=layer) == ["global config", "admin"]
    (line,) = [line for line in container.text().splitlines() if "refuses the bootstrap" in line]
    assert "istio-system/bad" in line and "admin" in line and "starting without them" in line


def test_an_istiod_that_does_not_answer_stops_nobody(
    container: Container, control_plane: ControlPlane
) -> None:
    """Certificates came, the answer about patches does not: the agent says so and goes on."""
    control_plane.mute = BOOTSTRAP_TYPE
    container.environment["BOOTSTRAP_XDS_AGENT"] = "true"
    container.start_ready()
    assert "cannot be had from istiod: " in container.text()


@pytest.mark.covers(
    "MeshConfig.defaultConfig.binaryPath", "MeshConfig.defaultConfig.customConfigFile"
)
def test_another_envoy_may_run_another_configuration(container: Container, tmp_path: Path) -> None:
    """Both as they are: the program at that path, started with that file."""
    program, file = tmp_path / "my-envoy", tmp_path / "mine.json"
    program.symlink_to(find_envoy())
    admin = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": container.admin}}}
    file.write_text(json.dumps({"node": {"id": "mine", "cluster": "mine"}, "admin": admin}))
    container.config |= {"binaryPath": str(program), "customConfigFile": str(file)}
    container.start()
    eventually(lambda: container.get(container.admin, "/ready") == (200, "LIVE\n"), "Envoy")
    options = json.loads(container.get(container.admin, "/server_info")[1])["command_line_options"]
    assert options["config_path"] == str(file)
    running = psutil.Process(container.debug()["envoy"]["pid"]).cmdline()
    assert running[0] == str(program)
