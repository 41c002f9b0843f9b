"""PeerAuthentication on a real Envoy: which level decides, and what a port of its own does."""

from __future__ import annotations

import pytest

from policy.guard import PLAIN, Caller, Guard, policy

pytestmark = pytest.mark.envoy
MESH, SPACE, OWN = "istio-system", "default", "selector: {matchLabels: {app: server}}, "


def peer(mode: str, namespace: str = SPACE, own: str = "", name: str = "p", ports: str = "") -> str:
    """A PeerAuthentication."""
    body = f"{{{own}mtls: {{mode: {mode}}}{ports}}}"
    return policy(body, name=name, namespace=namespace, kind="PeerAuthentication")


LEVELS = {
    "nothing": ("", True, True),
    "mesh strict": (peer("STRICT", MESH), False, True),
    "namespace over mesh": (peer("STRICT", MESH) + peer("PERMISSIVE"), True, True),
    "unset namespace inherits the mesh's": (peer("STRICT", MESH) + peer("UNSET"), False, True),
    "workload over namespace": (peer("STRICT") + peer("PERMISSIVE", own=OWN, name="w"), True, True),
    "unset workload inherits the namespace's": (
        peer("STRICT") + peer("UNSET", own=OWN, name="w"),
        False,
        True,
    ),
    "unset workload and namespace": (
        peer("STRICT", MESH) + peer("UNSET") + peer("UNSET", own=OWN, name="w"),
        False,
        True,
    ),
    "another namespace's": (peer("STRICT", "elsewhere"), True, True),
    "another workload's": (peer("STRICT", own=OWN.replace("server", "other")), True, True),
    "disabled": (peer("DISABLE"), True, False),
}


def works(guard: Guard, caller: Caller, port: int = 0) -> bool:
    """Whether a request gets through."""
    try:
        return guard.send(caller, port=port).status == 200
    except OSError:
        return False


@pytest.mark.covers("PeerAuthentication.mtls.mode", "PeerAuthentication.selector.matchLabels")
@pytest.mark.parametrize(("text", "plain", "mtls"), LEVELS.values(), ids=LEVELS)
def test_which_level_decides(guard: Guard, text: str, plain: bool, mtls: bool) -> None:
    """Plaintext and mTLS at the HTTP port."""
    guard.apply(text)
    assert works(guard, PLAIN) == plain
    assert works(guard, Caller()) == mtls


@pytest.mark.covers("PeerAuthentication.portLevelMtls.mode")
def test_a_port_of_its_own(guard: Guard) -> None:
    """Ports are the workload's; an unset one has the workload's mode."""
    number = guard.http.port
    open_port = f", portLevelMtls: {{{number}: {{mode: PERMISSIVE}}}}"
    guard.apply(peer("STRICT", own=OWN, ports=open_port))
    assert works(guard, PLAIN)
    assert not works(guard, PLAIN, guard.auto.port)
    unset = f", portLevelMtls: {{{number}: {{mode: UNSET}}}}"
    guard.apply(peer("STRICT", own=OWN, ports=unset))
    assert not works(guard, PLAIN)
    closed = f", portLevelMtls: {{{number}: {{mode: STRICT}}}}"
    guard.apply(peer("UNSET", own=OWN, ports=closed))
    assert not works(guard, PLAIN)
    assert works(guard, PLAIN, guard.auto.port)


@pytest.mark.covers("PeerAuthentication.mtls.mode")
@pytest.mark.parametrize(
    ("mode", "plain", "mtls"),
    [("STRICT", False, True), ("PERMISSIVE", True, True), ("DISABLE", True, False)],
)
def test_tcp_ports(guard: Guard, mode: str, plain: bool, mtls: bool) -> None:
    """The same modes for bytes; a port that disables mTLS takes a client's TLS as bytes of the application."""
    guard.apply(peer(mode))
    answers = {True: b"tcp:HELLO THERE\n", False: b""}
    assert guard.ask(PLAIN) == answers[plain]
    assert guard.ask(Caller()) == answers[mtls]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("{mtls: {mode: STRIKT}}", "MLT0013"),
        ("{mtls: [STRICT]}", "MLT0013"),
        ("{mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: DISABLE}}}", "IST0106"),
    ],
)
def test_a_mistake_does_not_open_the_workload(guard: Guard, body: str, code: str) -> None:
    """What cannot be read is STRICT; what can stays in force beside the mistake."""
    world = guard.apply(policy(body, kind="PeerAuthentication"), clean=False)
    assert code in {finding.code for finding in world.findings}
    assert not works(guard, PLAIN)
    assert works(guard, Caller())
