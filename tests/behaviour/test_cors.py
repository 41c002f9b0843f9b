"""VirtualService ``http[].corsPolicy``: what browsers of other origins are told."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from meltemi.testing.client import Client
from meltemi.testing.mesh import Mesh

pytestmark = pytest.mark.envoy

URL = "http://reviews:9080/"
Apply = Callable[[str], Mesh]
V1 = "route: [{destination: {host: reviews, subset: v1}}]"

PREFLIGHT = {"origin": "https://a.example.com", "access-control-request-method": "GET"}


def cors(policy: str) -> str:
    """A rule with this corsPolicy."""
    return f"- corsPolicy: {policy}\n  {V1}"


@pytest.mark.covers(
    "VirtualService.http.corsPolicy.allowOrigins.prefix",
    "VirtualService.http.corsPolicy.allowMethods",
    "VirtualService.http.corsPolicy.allowHeaders",
    "VirtualService.http.corsPolicy.maxAge",
    "VirtualService.http.corsPolicy.allowCredentials",
)
def test_cors_answers_preflights_of_allowed_origins(
    http: Apply, caller: Client, shop: Mesh
) -> None:
    http(
        cors(
            "{allowOrigins: [{prefix: 'https://a.'}], allowMethods: [GET, PUT], "
            "allowHeaders: [x-one], exposeHeaders: [x-two], maxAge: 24h, allowCredentials: true}"
        )
    )
    answer = caller.options(URL, headers=PREFLIGHT)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "https://a.example.com"
    assert answer.headers["access-control-allow-methods"].replace(" ", "") == "GET,PUT"
    assert answer.headers["access-control-allow-headers"] == "x-one"
    assert answer.headers["access-control-max-age"] == "86400"
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert shop.received("reviews-v1") == []


@pytest.mark.covers(
    "VirtualService.http.corsPolicy.exposeHeaders",
    "VirtualService.http.corsPolicy.allowOrigins.exact",
)
def test_cors_exposes_headers_on_requests(http: Apply, caller: Client) -> None:
    http(cors("{allowOrigins: [{exact: 'https://a.example.com'}], exposeHeaders: [x-two]}"))
    answer = caller.get(URL, headers={"origin": "https://a.example.com"})
    assert answer.headers["access-control-expose-headers"] == "x-two"


@pytest.mark.covers("VirtualService.http.corsPolicy.allowOrigins.regex")
def test_cors_says_nothing_to_other_origins(http: Apply, caller: Client) -> None:
    http(cors("{allowOrigins: [{regex: 'https://b[.].*'}], allowMethods: [GET]}"))
    answer = caller.get(URL, headers={"origin": "https://a.example.com"})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.covers("VirtualService.http.corsPolicy.allowOrigin")
def test_cors_by_the_old_list_of_origins(http: Apply, caller: Client) -> None:
    http(cors("{allowOrigin: ['https://a.example.com'], allowMethods: [GET]}"))
    answer = caller.get(URL, headers={"origin": "https://a.example.com"})
    assert answer.headers["access-control-allow-origin"] == "https://a.example.com"
    other = caller.get(URL, headers={"origin": "https://b.example.com"})
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.covers("VirtualService.http.corsPolicy.unmatchedPreflights")
@pytest.mark.parametrize(("wanted", "reaches"), [("FORWARD", True), ("IGNORE", False)])
def test_cors_unmatched_preflights(
    http: Apply, caller: Client, shop: Mesh, wanted: str, reaches: bool
) -> None:
    http(
        cors(
            "{allowOrigins: [{exact: 'https://b.example.com'}], allowMethods: [GET], "
            f"unmatchedPreflights: {wanted}}}"
        )
    )
    caller.options(URL, headers=PREFLIGHT)
    assert bool(shop.received("reviews-v1")) is reaches
