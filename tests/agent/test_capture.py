"""Traffic capture: the rules as data, and what the kernel does with them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from meltemi.agent.capture import (
    CaptureConfig,
    build_rules,
    parse_cidrs,
    parse_ports,
    render_nft,
)

WORLD = Path(__file__).with_name("capture_world.py")


def observe(**config: Any) -> dict[str, dict[str, str]]:
    run = subprocess.run(
        [sys.executable, str(WORLD), json.dumps(config)], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    result: dict[str, Any] = json.loads(run.stdout)
    if "skip" in result:
        pytest.skip(f"this kernel gives no namespaces: {result['skip']}")
    return result


def test_everything_goes_through_the_proxy_but_its_own_traffic() -> None:
    """Both exemptions hold, the application reaches itself, the agent's ports stay open."""
    seen = observe()["captured"]
    assert {name: port for name, port in seen.items() if "question" not in name} == {
        "app to service": "15001",
        "app to database": "15001",
        "app to neighbour": "15001",
        "proxy by mark": "80",
        "proxy by user": "80",
        "proxy by mark to own pod": "15006",
        "proxy to app": "9080",
        "app to own pod": "9080",
        "app to localhost": "9080",
        "in 9080": "15006",
        "in 9090": "15006",
        "in 15020": "15020",
        "in 15021": "15021",
    }


def test_questions_to_the_resolvers_go_to_the_agent() -> None:
    """Over UDP and TCP; not those to other servers, and not the agent's own, whatever port they come from."""
    seen = observe(dns_servers=["10.96.0.10"])["captured"]
    assert {name: port for name, port in seen.items() if "question" in name} == {
        "question to the resolver": "15053",
        "question to the resolver over TCP": "15053",
        "question to another": "53",
        "proxy's question": "53",
        "proxy's question over TCP": "53",
        "question from a port": "15053",
        "proxy's question from the same port": "53",
    }


def test_all_questions_can_be_captured() -> None:
    """Without known resolvers, whatever goes to port 53."""
    seen = observe(dns_servers=[])["captured"]
    assert (seen["question to another"], seen["proxy's question"]) == ("15053", "53")


def test_without_dns_capture_questions_are_left_alone() -> None:
    """DNS over UDP is nobody's business; over TCP it is a connection like others."""
    seen = observe()["captured"]
    assert (seen["question to the resolver"], seen["question to the resolver over TCP"]) == (
        "53",
        "15001",
    )


def test_includes_and_excludes_narrow_the_capture() -> None:
    """Only the included range and port are captured, and an excluded port not even there."""
    seen = observe(
        include_cidrs=["10.96.0.0/16"],
        exclude_outbound_ports=[3306],
        include_inbound_ports=["9080"],
    )["captured"]
    assert (seen["app to service"], seen["app to database"]) == ("15001", "3306")
    assert seen["app to neighbour"] == "80"
    assert (seen["in 9080"], seen["in 9090"]) == ("15006", "9090")


def test_excluded_ranges_and_inbound_ports_are_left_alone() -> None:
    """What is excluded connects directly; the rest is captured."""
    seen = observe(exclude_cidrs=["10.96.0.0/16"], exclude_inbound_ports=[9090])["captured"]
    assert (seen["app to service"], seen["app to neighbour"]) == ("80", "15001")
    assert (seen["in 9080"], seen["in 9090"]) == ("15006", "9090")


def test_removal_restores_the_direct_paths() -> None:
    """After clean-up every connection arrives where it was sent."""
    seen = observe()["removed"]
    assert (seen["app to service"], seen["in 9080"]) == ("80", "9080")


def test_no_outbound_capture_without_included_ranges() -> None:
    """An empty include list captures nothing but the ports that were included by number."""
    rules = build_rules(CaptureConfig(include_cidrs=(), include_outbound_ports=(443,)))
    redirects = [rule for rule in rules if rule.redirect == 15001]
    assert [match.value for rule in redirects for match in rule.matches] == [443]


def test_ipv6_ranges_need_an_ipv6_pod() -> None:
    """A pod without IPv6 gets no IPv6 rules, whatever the lists hold."""
    config = {"exclude_cidrs": ("10.0.0.0/8", "fd00::/8")}
    without = render_nft(build_rules(CaptureConfig(**config)))
    with_v6 = render_nft(build_rules(CaptureConfig(**config, ipv6=True)))
    assert "fd00::/8" not in without and "meta nfproto != ipv4 return" in without
    assert "ip6 daddr fd00::/8 return" in with_v6 and "nfproto" not in with_v6


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("10.0.0.0/8, 1.2.3.4", None),
        ("*", None),
        ("*,10.0.0.0/8", "'*' stands alone"),
        ("10.0.0.0/40", "'10.0.0.0/40' is not an IP network"),
        ("example.com", "'example.com' is not an IP network"),
    ],
)
def test_wrong_ranges_are_named(text: str, problem: str | None) -> None:
    """Each wrong entry is quoted with what to write instead."""
    _, problems = parse_cidrs(text)
    assert ([problem in problems[0]] if problem else problems) == ([True] if problem else [])


@pytest.mark.parametrize("text", ["0", "65536", "http", "-1", "²"])
def test_wrong_ports_are_named(text: str) -> None:
    """A port is a number from 1 to 65535."""
    assert text in parse_ports(text)[1][0]


@pytest.mark.envoy
def test_a_proxy_with_the_applications_user_is_told_by_its_mark(tmp_path: Path) -> None:
    """Behind capture, certificate request and stream reach istiod by mark; the application's call is caught."""
    program = WORLD.with_name("captured_proxy.py")
    run = subprocess.run(
        [sys.executable, str(program), str(tmp_path)], capture_output=True, text=True, timeout=100
    )
    assert run.returncode == 0, run.stderr
    result: dict[str, Any] = json.loads(run.stdout)
    if "skip" in result:
        pytest.skip(f"this kernel gives no namespaces: {result['skip']}")
    assert result == {
        "mark": "1337",
        "stream": "control_plane.connected_state: 1",
        # Nothing listens on 15001 here: a refusal shows that the call was redirected there.
        "application": "ConnectionRefusedError",
    }


WITHOUT_PERMISSION = """
import ctypes, os
# A user namespace of our own has no power over this network.
if ctypes.CDLL(None).unshare(0x10000000):
    raise SystemExit("skip")
from meltemi.adapters.capture_nft import CaptureError, apply_rules
try:
    apply_rules([])
except CaptureError as error:
    print(error)
"""


def test_missing_permission_is_said_and_not_waited_for() -> None:
    """Without NET_ADMIN the message names the capability."""
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_PERMISSION], capture_output=True, text=True, timeout=30
    )
    if "skip" in run.stderr:
        pytest.skip("this kernel gives no user namespaces")
    assert "NET_ADMIN" in run.stdout, run.stderr
