"""VirtualService routing on a real Envoy: one sidecar, two versions of a backend, one path per behaviour."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from envoy_rig import Backend, Envoy, fetch, free_port
from mesh_world import build_world, pod, service
from pki import make_authority, write_identity

pytestmark = pytest.mark.envoy

RULES = """
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - match: [{headers: {end-user: {exact: jason}}}]
    route: [{destination: {host: reviews, subset: v2}}]
  - match: [{uri: {prefix: /weighted}}]
    route:
    - {destination: {host: reviews, subset: v1}, weight: 80}
    - {destination: {host: reviews, subset: v2}, weight: 20}
  - match: [{uri: {prefix: /abort}}]
    fault: {abort: {httpStatus: 555, percentage: {value: 100}}}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /delay}}]
    fault: {delay: {fixedDelay: 0.3s, percentage: {value: 100}}}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /retry}}]
    retries: {attempts: 3, retryOn: 5xx}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /slow}}]
    timeout: 0.2s
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {exact: /old}}]
    redirect: {uri: /new, authority: other.example, redirectCode: 302}
  - match: [{uri: {prefix: /api}}]
    rewrite: {uri: /, authority: rewritten.example}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /re/}}]
    rewrite: {uriRegexRewrite: {match: "^/re/([a-z]+)/([0-9]+)$", rewrite: '/x/\\2/\\1'}}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /answer}}]
    directResponse: {status: 418, body: {string: teapot}}
  - match: [{uri: {prefix: /headers}}]
    headers:
      request: {set: {x-set: "1"}, add: {x-add: "2"}, remove: [x-gone]}
      response: {set: {x-answer: "3"}}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /mirror}}]
    mirror: {host: reviews, subset: v2}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /cors}}]
    corsPolicy: {allowOrigins: [{exact: https://a.example}], allowMethods: [GET], maxAge: 60s}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {regex: "/rx/.*"}, queryParams: {k: {exact: v}}, withoutHeaders: {x-no: {}}, method: {exact: GET}}]
    route: [{destination: {host: reviews, subset: v2}}]
  - match: [{uri: {prefix: /CASE}, ignoreUriCase: true}]
    route: [{destination: {host: reviews, subset: v2}}]
  - match: [{uri: {prefix: /labels}, sourceLabels: {app: client}}]
    route: [{destination: {host: reviews, subset: v2}}]
  - match: [{uri: {prefix: /labels2}, sourceLabels: {app: other}}]
    route: [{destination: {host: reviews, subset: v2}}]
  - match: [{uri: {prefix: /missing}}]
    route: [{destination: {host: nosuch}}]
  - route: [{destination: {host: reviews, subset: v1}}]
"""


@dataclass
class Sidecar:
    """A running sidecar and the backends behind it."""

    port: int
    envoy: Envoy
    v1: Backend
    v2: Backend

    def get(self, path: str, **kwargs: object):  # type: ignore[no-untyped-def]
        return fetch(self.port, path, host="reviews", **kwargs)  # type: ignore[arg-type]


def _respond(handler: BaseHTTPRequestHandler) -> int | None:
    if handler.path.startswith("/retry"):
        attempt = int(handler.headers.get("x-envoy-attempt-count", "1"))
        return 200 if attempt >= 3 else 503
    if handler.path.startswith("/slow"):
        time.sleep(1)
    return None


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """One sidecar for all tests of this file."""
    folder: Path = tmp_path_factory.mktemp("sidecar")
    v1 = Backend("v1", "127.0.0.1", respond=_respond)
    v2 = Backend("v2", "127.0.0.2", port=v1.port, respond=_respond)
    world = build_world(
        service("reviews", ("http", 9080, v1.port))
        + pod("reviews-v1", "127.0.0.1", labels={"app": "reviews", "version": "v1"}, mtls=False)
        + pod("reviews-v2", "127.0.0.2", labels={"app": "reviews", "version": "v2"}, mtls=False)
        + pod("client", "10.1.0.6")
        + RULES
    )
    assert not world.findings
    port = free_port()
    envoy = Envoy(
        folder,
        {"0.0.0.0_9080": [("127.0.0.1", port)]},
        {"MESH_WORKLOAD": "client", "MESH_NAMESPACE": "default"},
    )
    try:
        write_identity(
            envoy.certificates, make_authority(), "spiffe://cluster.local/ns/default/sa/c"
        )
        envoy.load(world.resources("client"), world.endpoints("client"))
        envoy.start()
        yield Sidecar(port, envoy, v1, v2)
    finally:
        envoy.close()
        v1.close()
        v2.close()


def test_everything_else_goes_to_the_default(sidecar: Sidecar) -> None:
    """The last rule takes what no other takes; the caller sees Istio's server header."""
    answer = sidecar.get("/hello")
    assert (answer.status, answer.json["name"]) == (200, "v1")
    assert answer.headers["server"] == "istio-envoy"


def test_header_match(sidecar: Sidecar) -> None:
    """A user with a header reaches another version."""
    assert sidecar.get("/hello", headers={"end-user": "jason"}).json["name"] == "v2"
    assert sidecar.get("/hello", headers={"end-user": "anna"}).json["name"] == "v1"


def test_weights(sidecar: Sidecar) -> None:
    """80/20 is within six standard deviations on 300 requests."""
    counts = Counter(sidecar.get("/weighted").json["name"] for _ in range(300))
    assert sum(counts.values()) == 300
    assert 18 <= counts["v2"] <= 102


def test_abort(sidecar: Sidecar) -> None:
    """An abort answers without asking the backend."""
    assert sidecar.get("/abort").status == 555


def test_delay(sidecar: Sidecar) -> None:
    """A delay is as long as asked for, at least."""
    before = time.monotonic()
    assert sidecar.get("/delay").status == 200
    assert time.monotonic() - before >= 0.25  # Envoy rounds timers to milliseconds


def test_retries(sidecar: Sidecar) -> None:
    """The third attempt succeeds."""
    answer = sidecar.get("/retry")
    assert answer.status == 200
    assert answer.json["headers"]["x-envoy-attempt-count"] == "3"


def test_timeout(sidecar: Sidecar) -> None:
    """A slow backend gives 504."""
    assert sidecar.get("/slow").status == 504


def test_redirect(sidecar: Sidecar) -> None:
    """A redirect names the new place."""
    answer = sidecar.get("/old")
    assert answer.status == 302
    assert answer.headers["location"] == "http://other.example/new"


@pytest.mark.parametrize(
    ("path", "seen"),
    [("/api/v1", "/v1"), ("/api", "/"), ("/api?a=1", "/?a=1"), ("/re/abc/42", "/x/42/abc")],
)
def test_rewrite(sidecar: Sidecar, path: str, seen: str) -> None:
    """The backend sees the rewritten path, with no doubled slash."""
    got = sidecar.get(path).json
    assert got["path"] == seen
    if path.startswith("/api"):
        assert got["headers"]["host"] == "rewritten.example"


def test_direct_response(sidecar: Sidecar) -> None:
    """The proxy answers by itself."""
    answer = sidecar.get("/answer")
    assert (answer.status, answer.body) == (418, b"teapot")


def test_header_operations(sidecar: Sidecar) -> None:
    """Headers are set, added and removed on the way in and out."""
    answer = sidecar.get("/headers", headers={"x-gone": "x"})
    assert answer.headers["x-answer"] == "3"
    seen = answer.json["headers"]
    assert (seen["x-set"], seen["x-add"]) == ("1", "2")
    assert "x-gone" not in seen


def test_mirror(sidecar: Sidecar) -> None:
    """The copy reaches the other version with -shadow in its authority."""
    from envoy_rig import wait_for

    assert sidecar.get("/mirror/1").json["name"] == "v1"
    copy = wait_for(
        "the mirrored request", lambda: [e for e in sidecar.v2.seen if e["path"] == "/mirror/1"]
    )
    assert "-shadow" in copy[0]["headers"]["host"]


def test_cors_preflight(sidecar: Sidecar) -> None:
    """A preflight of an allowed origin is answered by the proxy."""
    headers = {"origin": "https://a.example", "access-control-request-method": "GET"}
    answer = sidecar.get("/cors", method="OPTIONS", headers=headers)
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    assert answer.headers["access-control-max-age"] == "60"


def test_regex_query_method_and_absent_header(sidecar: Sidecar) -> None:
    """All conditions must hold together."""
    assert sidecar.get("/rx/1?k=v").json["name"] == "v2"
    assert sidecar.get("/rx/1?k=w").json["name"] == "v1"
    assert sidecar.get("/rx/1?k=v", headers={"x-no": "1"}).json["name"] == "v1"
    assert sidecar.get("/rx/1?k=v", method="POST").json["name"] == "v1"


def test_ignore_case(sidecar: Sidecar) -> None:
    """ignoreUriCase matches any spelling."""
    assert sidecar.get("/case/x").json["name"] == "v2"


def test_source_labels(sidecar: Sidecar) -> None:
    """Rules for other workloads are not in this proxy."""
    assert sidecar.get("/labels").json["name"] == "v2"


def test_missing_destination_is_503(sidecar: Sidecar) -> None:
    """A route to nowhere answers 503 and leaves the others alone."""
    assert sidecar.get("/missing").status == 503
    assert sidecar.get("/hello").status == 200


@pytest.mark.parametrize(
    "host",
    [
        "reviews",
        "reviews:9080",
        "reviews.default",
        "reviews.default.svc",
        "reviews.default.svc.cluster.local:9080",
        "10.96.0.1",
    ],
)
def test_all_names_of_a_service(sidecar: Sidecar, host: str) -> None:
    """Short names, the full name and the virtual address lead to the same rules."""
    assert fetch(sidecar.port, "/abort", host=host).status == 555


def test_metrics(sidecar: Sidecar) -> None:
    """Requests are counted with Istio's labels."""
    sidecar.get("/hello")
    lines = sidecar.envoy.stats('istio_requests_total.*response_code="200"')
    assert lines
    for label in (
        'reporter="source"',
        'source_workload="client"',
        'destination_service="reviews.default.svc.cluster.local"',
        'destination_service_namespace="default"',
        'destination_canonical_service="reviews"',
        'request_protocol="http"',
        'grpc_response_status=""',
    ):
        assert any(label in line for line in lines), label
