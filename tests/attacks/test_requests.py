"""Attacks with the shape of a request: smuggling, paths, hosts, sizes. On a sidecar and on a gateway, both real Envoys.

Each row says what the attacker hears. Beside that, for every row: the application never sees what a policy refuses, and what it
does see has one reading only.
"""

from __future__ import annotations

import pytest

from attacks.conftest import Site
from attacks.raw import is_canonical, statuses, talk
from envoy_rig import fetch
from policy.guard import PLAIN, policy

pytestmark = pytest.mark.envoy
PLACES = ("sidecar", "edge")
HOST = b"Host: any\r\n"
SECOND = b"GET /secret HTTP/1.1\r\nHost: any\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\n" + HOST
CHUNKED = b"\r\n\r\n0\r\n\r\n" + SECOND
SECRET = "{action: DENY, rules: [{to: [{operation: {paths: ['/secret*']}}]}]}"

# what: (bytes, statuses that come back)
SMUGGLING: dict[str, tuple[bytes, list[int]]] = {
    "length and chunks": (
        POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked" + CHUNKED,
        [400],
    ),
    "chunks and length": (
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4" + CHUNKED,
        [400],
    ),
    "an unknown encoding": (POST + b"Transfer-Encoding: xchunked" + CHUNKED, [501]),
    "an encoding in quotes": (POST + b'Transfer-Encoding: "chunked"' + CHUNKED, [501]),
    "two encodings": (
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity" + CHUNKED,
        [501],
    ),
    "a list of encodings": (POST + b"Transfer-Encoding: chunked, identity" + CHUNKED, [501]),
    "an encoding before chunks": (POST + b"Transfer-Encoding: gzip, chunked" + CHUNKED, [501]),
    "a space before the colon": (POST + b"Transfer-Encoding : chunked" + CHUNKED, [400]),
    "a control character": (POST + b"Transfer-Encoding: \x0bchunked" + CHUNKED, [400]),
    "an encoding on a folded line": (POST + b"Transfer-Encoding:\r\n chunked" + CHUNKED, [200, 403]),
    "a header hidden in a fold": (
        b"GET /a HTTP/1.1\r\n" + HOST + b"X: b\r\n Transfer-Encoding: chunked\r\n\r\n" + SECOND,
        [200, 403],
    ),
    "a fold before any header": (b"GET /a HTTP/1.1\r\n Host: any\r\n\r\n" + SECOND, [400]),
    "lines that end in LF": (b"GET /a HTTP/1.1\nHost: any\nX: y\n\n" + SECOND, [200, 403]),
    "a header behind a bare CR": (
        b"GET /a HTTP/1.1\r\n" + HOST + b"X: a\rContent-Length: 41\r\n\r\n" + SECOND,
        [200, 403],
    ),
    "a zero byte": (b"GET /a HTTP/1.1\r\n" + HOST + b"X: a\x00b\r\n\r\n" + SECOND, [400]),
    "two lengths": (POST + b"Content-Length: 0\r\nContent-Length: 39\r\n\r\n" + SECOND, [400]),
    "the same length twice": (POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", [400]),
    "a list of lengths": (POST + b"Content-Length: 0, 39\r\n\r\n" + SECOND, [400]),
    "a length with a sign": (POST + b"Content-Length: +3\r\n\r\nabc" + SECOND, [400]),
    "a negative length": (POST + b"Content-Length: -1\r\n\r\n" + SECOND, [400]),
    "a length in hex": (POST + b"Content-Length: 0x3\r\n\r\nabc" + SECOND, [400]),
    "a chunk size that is none": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nabcde\r\n0\r\n\r\n" + SECOND,
        [400],
    ),
    "a chunk size that overflows": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n10000000000000005\r\nabcde\r\n0\r\n\r\n",
        [400],
    ),
    "LF in a chunk's extension": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n5;a\nb\r\nabcde\r\n0\r\n\r\n" + SECOND,
        [400],
    ),
    "chunks in HTTP/1.0": (
        b"POST /a HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked" + CHUNKED,
        [426],
    ),
    "no version": (b"GET /a\r\n\r\n" + SECOND, [426]),
    "no host": (b"GET /a HTTP/1.1\r\n\r\n" + SECOND, [400]),
    "an upgrade to HTTP/2": (
        b"GET /a HTTP/1.1\r\n" + HOST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n" + SECOND,
        [200, 403],
    ),
    "a request in a body": (
        b"GET /a HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(SECOND) + SECOND + SECOND,
        [200, 403],
    ),
    "headers that the connection takes off": (
        b"GET /a HTTP/1.1\r\n" + HOST + b"Connection: host, authorization\r\n\r\n" + SECOND,
        [400],
    ),
    "a tunnel": (b"CONNECT other:80 HTTP/1.1\r\n" + HOST + b"\r\n" + SECOND, [404]),
    "a fragment": (b"GET /a#/secret HTTP/1.1\r\n" + HOST + b"\r\n" + SECOND, [400]),
    "a header that is too large": (
        b"GET /a HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 70_000 + b"\r\n\r\n" + SECOND,
        [431],
    ),
    "too many headers": (
        b"GET /a HTTP/1.1\r\n"
        + HOST
        + b"".join(b"X%d: a\r\n" % number for number in range(200))
        + b"\r\n"
        + SECOND,
        [431],
    ),
    "a path that is too long": (
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n" + SECOND,
        [431],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def guarded(site: Site) -> Site:
    """A policy refuses one path, at both places."""
    site.inner.apply(policy(SECRET))
    site.edge.apply(policy(SECRET, namespace="istio-system"))
    return site


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize(("data", "wanted"), SMUGGLING.values(), ids=SMUGGLING)
def test_smuggling(guarded: Site, where: str, data: bytes, wanted: list[int]) -> None:
    """Refused, or read by the application exactly as the proxy read it: the second request meets the policy."""
    address, port, app = guarded.target(where)
    app.received = b""
    heard = statuses(talk(address, port, data))
    assert heard == wanted
    reached = app.received
    assert is_canonical(reached), reached
    in_a_body = data.count(SECOND) == 2
    assert reached.count(b"GET /secret") == in_a_body


# Only /public and /admin are open, /admin to nobody, admin.example neither.
RULES = (
    "{action: DENY, rules: [{to: [{operation: {paths: [/admin, '/admin/*']}}]}, "
    "{to: [{operation: {hosts: [admin.example, 'admin.example:*']}}]}]}",
    "{rules: [{to: [{operation: {paths: [/public, '/public/*', /admin, '/admin/*']}}]}]}",
)
TRICKS = [
    "/admin", "/admin/", "/admin?x", "//admin", "///admin//x", "/./admin", "/public/../admin", "/public/..//admin",
    "/public/%2e%2e/admin", "/public/%2E%2e/admin/x", "/public%2f..%2fadmin", "/%2fadmin", "/admin%2fx", "/admin%5cx",
    "\\\\admin", "/public\\..\\admin", "/public/..%5cadmin", "/%61dmin", "/public/../../../admin",
    # Not the same path: nothing allows them.
    "/ADMIN", "/Admin/x", "/admin;x", "/%25%61dmin", "/public/../secret", "/..%252fadmin",
]  # fmt: skip
HOSTS = [
    "admin.example", "ADMIN.example", "admin.example.", "Admin.Example.", "admin.example:80", "admin.example:8443",
    "ADMIN.EXAMPLE:80", "admin.example.:80",
]  # fmt: skip
STRICT_PATHS = "pathNormalization: {normalization: DECODE_AND_MERGE_SLASHES}\n"


@pytest.fixture(scope="module")
def walled(site: Site) -> Site:
    """Policies on paths and hosts, at both places."""
    text = [policy(body, name=f"p{n}") for n, body in enumerate(RULES)]
    site.inner.apply("".join(text), STRICT_PATHS)
    text = [policy(body, name=f"p{n}", namespace="istio-system") for n, body in enumerate(RULES)]
    site.edge.apply("".join(text), mesh=STRICT_PATHS)
    return site


@pytest.mark.parametrize("where", PLACES)
def test_path_tricks(walled: Site, where: str) -> None:
    """No other spelling of a refused path is served, and what is refused never reaches the application."""
    address, port, app = walled.target(where)
    app.received = b""
    for path in TRICKS:
        heard = talk(
            address, port, b"GET %s HTTP/1.1\r\n%sConnection: close\r\n\r\n" % (path.encode(), HOST)
        )
        assert [code for code in statuses(heard) if code in (400, 403, 404)], (path, heard)
    assert app.received == b""
    assert statuses(talk(address, port, b"GET /public HTTP/1.1\r\n" + HOST + b"\r\n")) == [200]


@pytest.mark.parametrize("where", PLACES)
def test_host_tricks(walled: Site, where: str) -> None:
    """Case, a dot at the end and a port do not make another host; an absolute URL's host is the one that counts."""
    address, port, app = walled.target(where)
    app.received = b""
    for host in HOSTS:
        line = b"GET /public HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % host.encode()
        assert statuses(talk(address, port, line)) == [403], host
    absolute = b"GET http://admin.example/public HTTP/1.1\r\nHost: any\r\nConnection: close\r\n\r\n"
    assert statuses(talk(address, port, absolute)) == [403]
    assert app.received == b""


FORGED = {
    "x-forwarded-client-cert": "By=x;Hash=0;URI=spiffe://cluster.local/ns/istio-system/sa/admin",
    "x-mesh-peer-workload": "admin",
    "x-mesh-peer-namespace": "istio-system",
    "x-envoy-peer-metadata": "admin",
    "x-envoy-peer-metadata-id": "sidecar~1.1.1.1~admin.istio-system~x",
    "x-envoy-internal": "true",
    "x-envoy-downstream-service-cluster": "admin",
    "x-envoy-decorator-operation": "admin",
    "x-envoy-retry-on": "5xx",
    "x-envoy-max-retries": "100",
    "x-envoy-upstream-rq-timeout-ms": "1",
    "x-envoy-ip-tags": "trusted",
}


def test_headers_of_the_mesh_from_outside(site: Site) -> None:
    """A gateway and a sidecar take them from no plaintext caller, and no policy believes them."""
    believing = policy(
        "{action: DENY, rules: [{from: [{source: {notPrincipals: ['*/sa/admin']}}], "
        "to: [{operation: {paths: [/identity]}}]}]}",
    )
    site.inner.apply(believing)
    seen = site.inner.send(PLAIN, headers=FORGED, port=site.inner.auto.port).seen
    taken = {name for name in FORGED if name.startswith(("x-forwarded", "x-mesh", "x-envoy-peer"))}
    assert not taken & seen.keys()
    assert site.inner.send(PLAIN, "/identity", headers=FORGED).status == 403
    site.edge.apply("")
    app = site.edge_app
    app.received = b""
    assert fetch(site.edge.web, host="any", headers=FORGED).status == 200
    for text in (b"admin", b"trusted", b"x-envoy-internal: true", b"x-envoy-retry-on"):
        assert text not in app.received, app.received
