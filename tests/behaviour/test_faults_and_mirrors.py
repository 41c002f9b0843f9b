"""VirtualService ``http[].fault`` and ``http[].mirror``: requests that are hurt on purpose, and those that are copied."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from meltemi.testing.client import Client
from meltemi.testing.mesh import Mesh

pytestmark = pytest.mark.envoy

URL = "http://reviews:9080/"
Apply = Callable[[str], Mesh]
V1 = "route: [{destination: {host: reviews, subset: v1}}]"


@pytest.mark.covers("VirtualService.http.fault.delay.fixedDelay")
def test_fault_delay(http: Apply, caller: Client) -> None:
    http(f"- fault: {{delay: {{fixedDelay: 0.3s, percentage: {{value: 100}}}}}}\n  {V1}")
    answer = caller.get(URL)
    assert answer.status == 200
    assert answer.elapsed_s >= 0.25
    assert answer.flags == "DI"


@pytest.mark.covers("VirtualService.http.fault.delay.percentage.value")
def test_fault_delay_concerns_a_share(http: Apply, caller: Client) -> None:
    http(f"- fault: {{delay: {{fixedDelay: 0.02s, percentage: {{value: 30}}}}}}\n  {V1}")
    found = caller.send(URL, n=300)
    delayed = sum("DI" in answer.flags for answer in found.responses)
    assert 50 < delayed < 130


@pytest.mark.covers("VirtualService.http.fault.abort.httpStatus")
def test_fault_abort_with_a_status(http: Apply, caller: Client, shop: Mesh) -> None:
    http(f"- fault: {{abort: {{httpStatus: 555, percentage: {{value: 100}}}}}}\n  {V1}")
    answer = caller.get(URL)
    assert (answer.status, answer.flags) == (555, "FI")
    assert shop.received("reviews-v1") == []


@pytest.mark.covers("VirtualService.http.fault.abort.percentage.value")
def test_fault_abort_concerns_a_share(http: Apply, caller: Client) -> None:
    http(f"- fault: {{abort: {{httpStatus: 500, percentage: {{value: 20}}}}}}\n  {V1}")
    caller.send(URL, n=600).assert_share(500, 0.2)


@pytest.mark.covers("VirtualService.http.fault.abort.grpcStatus")
def test_fault_abort_with_a_grpc_status(http: Apply, caller: Client) -> None:
    http(f"- fault: {{abort: {{grpcStatus: UNAVAILABLE, percentage: {{value: 100}}}}}}\n  {V1}")
    answer = caller.grpc("grpc://reviews:7070/a.B/C")
    status = answer.headers.get("grpc-status") or answer.trailers.get("grpc-status")
    assert status == "14"


@pytest.mark.covers("VirtualService.http.fault.delay.percent")
@pytest.mark.parametrize(("share", "flags"), [(100, "DI"), (0, "")])
def test_fault_delay_by_the_old_percent(
    http: Apply, caller: Client, share: int, flags: str
) -> None:
    """Without any percentage no request is delayed."""
    http(f"- fault: {{delay: {{fixedDelay: 0.02s, percent: {share}}}}}\n  {V1}")
    assert caller.get(URL).flags == flags


def test_fault_abort_without_a_percentage_aborts_nothing(http: Apply, caller: Client) -> None:
    http(f"- fault: {{abort: {{httpStatus: 555}}}}\n  {V1}")
    assert caller.get(URL).status == 200


def mirrored(shop: Mesh, workload: str, count: int) -> int:
    """How many requests a workload received; waits until there are ``count`` or a second is over."""
    end = time.monotonic() + 2.0
    while len(shop.received(workload)) < count and time.monotonic() < end:
        time.sleep(0.01)
    return len(shop.received(workload))


@pytest.mark.covers("VirtualService.http.mirror.host", "VirtualService.http.mirror.subset")
def test_mirror_sends_a_copy(http: Apply, caller: Client, shop: Mesh) -> None:
    http(f"- {V1}\n  mirror: {{host: reviews, subset: v2}}")
    assert caller.send(URL, n=10).counts == {"reviews-v1": 10}
    assert mirrored(shop, "reviews-v2", 10) == 10
    assert shop.received("reviews-v2")[0].headers["host"].startswith("reviews-shadow")


@pytest.mark.covers("VirtualService.http.mirror.port.number", "VirtualService.http.mirrorPercent")
@pytest.mark.parametrize(("percent", "copies"), [(100, 10), (0, 0)])
def test_mirror_to_a_port_by_the_old_percent(
    http: Apply, caller: Client, shop: Mesh, percent: int, copies: int
) -> None:
    http(f"- {V1}\n  mirror: {{host: details, port: {{number: 9081}}}}\n  mirrorPercent: {percent}")
    caller.send(URL, n=10)
    assert mirrored(shop, "details-v1", copies) == copies
    assert {received.who.port for received in shop.received("details-v1")} <= {9081}


@pytest.mark.covers("VirtualService.http.mirrorPercentage.value")
def test_mirror_percentage(http: Apply, caller: Client, shop: Mesh) -> None:
    http(f"- {V1}\n  mirror: {{host: reviews, subset: v2}}\n  mirrorPercentage: {{value: 0}}")
    assert caller.send(URL, n=20).counts == {"reviews-v1": 20}
    assert shop.received("reviews-v2") == []


@pytest.mark.covers(
    "VirtualService.http.mirrors.destination.host",
    "VirtualService.http.mirrors.destination.subset",
    "VirtualService.http.mirrors.destination.port.number",
    "VirtualService.http.mirrors.percentage.value",
)
def test_several_mirrors(http: Apply, caller: Client, shop: Mesh) -> None:
    http(f"""
- {V1}
  mirrors:
  - {{destination: {{host: reviews, subset: v2}}, percentage: {{value: 100}}}}
  - {{destination: {{host: details, port: {{number: 9081}}}}}}
""")
    caller.send(URL, n=5)
    assert mirrored(shop, "reviews-v2", 5) == 5
    assert mirrored(shop, "details-v1", 5) == 5
    assert {received.who.port for received in shop.received("details-v1")} == {9081}
