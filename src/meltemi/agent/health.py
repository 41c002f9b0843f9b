"""Whether a machine's workload is healthy: ``readinessProbe`` of the ProxyConfig.

In: the probe as JSON (a WorkloadGroup's ``probe`` has the same form), and the results of its checks. Out: a frozen ``Probe``, and
the moments at which the verdict changes. Thresholds count results in a row, as those of a kubelet. Checking is the adapter's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class HttpGet:
    """Healthy when the answer's status is 200 to 399. ``host`` "" is the machine's own address; https verifies nothing."""

    port: int
    path: str = "/"
    host: str = ""
    https: bool = False
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class TcpSocket:
    """Healthy when a connection opens."""

    port: int
    host: str = ""


@dataclass(frozen=True, slots=True)
class Exec:
    """Healthy when the command exits 0."""

    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Grpc:
    """Healthy when ``grpc.health.v1.Health/Check`` answers SERVING."""

    port: int
    service: str = ""


Check: TypeAlias = HttpGet | TcpSocket | Exec | Grpc


@dataclass(frozen=True, slots=True)
class Probe:
    """What to check, and when. Times are seconds; the defaults are Istio's."""

    check: Check
    initial_delay_s: float = 0.0
    timeout_s: float = 1.0
    period_s: float = 10.0
    successes: int = 1
    failures: int = 3


_KINDS = ("httpGet", "tcpSocket", "exec", "grpc")


def parse_probe(value: Any) -> tuple[Probe | None, list[str]]:
    """The probe of its JSON; None without one, or when it cannot be used, which the messages then explain."""
    if not value:
        return None, []
    if not isinstance(value, Mapping):
        return None, ["readinessProbe is not an object; going without it"]
    kinds = [kind for kind in _KINDS if value.get(kind) is not None]
    if len(kinds) != 1:
        return None, [f"readinessProbe needs one of {', '.join(_KINDS)}; going without it"]
    default = Probe(TcpSocket(0))
    try:
        return (
            Probe(
                _check(kinds[0], value[kinds[0]]),
                _number(value, "initialDelaySeconds") or default.initial_delay_s,
                _number(value, "timeoutSeconds") or default.timeout_s,
                _number(value, "periodSeconds") or default.period_s,
                round(_number(value, "successThreshold")) or default.successes,
                round(_number(value, "failureThreshold")) or default.failures,
            ),
            [],
        )
    except (ValueError, TypeError, AttributeError) as error:
        return None, [f"readinessProbe: {error}; going without it"]


def _number(value: Mapping[str, Any], name: str) -> float:
    found = float(value.get(name) or 0)
    if not 0 <= found < 1e9:
        raise ValueError(f"{name} {found:g} is out of range")
    return found


def _check(kind: str, body: Mapping[str, Any]) -> Check:
    if kind == "exec":
        command = tuple(str(word) for word in body.get("command") or ())
        if not command:
            raise ValueError("exec.command is empty")
        return Exec(command)
    port = int(body.get("port") or 0)
    if not 0 < port < 65536:
        raise ValueError(f"{kind}.port {port} is not a port")
    host = str(body.get("host") or "")
    if kind == "tcpSocket":
        return TcpSocket(port, host)
    if kind == "grpc":
        return Grpc(port, str(body.get("service") or ""))
    scheme = str(body.get("scheme") or "http").lower()
    if scheme not in ("http", "https"):
        raise ValueError(f"httpGet.scheme {scheme} is neither HTTP nor HTTPS")
    path = str(body.get("path") or "/")
    headers = tuple(
        (str(header.get("name", "")), str(header.get("value", "")))
        for header in body.get("httpHeaders") or ()
    )
    return HttpGet(
        port, path if path.startswith("/") else f"/{path}", host, scheme == "https", headers
    )


@dataclass(frozen=True, slots=True)
class Health:
    """The verdict so far: None until enough results agree. ``problem`` is the last failure's."""

    healthy: bool | None = None
    problem: str = ""
    in_a_row: int = 0  # results like the last one
    last: bool | None = None

    def step(self, probe: Probe, problem: str | None) -> Health:
        """One more result: None is a success. The verdict changed when ``healthy`` of the answer differs."""
        good = problem is None
        count = self.in_a_row + 1 if good is self.last else 1
        after = replace(self, in_a_row=count, last=good, problem=problem or "")
        enough = count >= (probe.successes if good else probe.failures)
        return replace(after, healthy=good) if enough else after
