"""What the WorkloadEntry of a machine says, to whom it is refused, and when it goes."""

from __future__ import annotations

from typing import Any

import pytest

from meltemi.config.decode import load
from meltemi.model.config import Config
from meltemi.model.proxy import NodeType, Proxy
from meltemi.registry import registration
from meltemi.registry.registration import Presence, presence

GRACE_S = 10.0


def proxy(address: str = "10.0.0.1", network: str = "", **metadata: Any) -> Proxy:
    told = {"AUTO_REGISTER_GROUP": "vm", **metadata}
    return Proxy("host.shop", NodeType.SIDECAR, (address,), "shop", network=network, metadata=told)


def group(**template: Any) -> Config[Any]:
    config, _ = load(
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "WorkloadGroup",
            "metadata": {"name": "vm", "namespace": "shop", "uid": "u-1"},
            "spec": {"template": template},
        }
    )
    assert config is not None
    return config


@pytest.mark.parametrize(
    ("told", "name"),
    [
        (proxy(), "vm-10.0.0.1"),
        (proxy(network="lan"), "vm-10.0.0.1-lan"),
        (proxy("fd00::1"), "vm-fd00--1"),
        (proxy(AUTO_REGISTER_GROUP="v" * 260), "v" * 244 + "-10.0.0.1"),
        (proxy(AUTO_REGISTER_GROUP="", WORKLOAD_ENTRY="mine"), "mine"),
        (proxy(AUTO_REGISTER_GROUP=""), ""),
        (proxy(AUTO_REGISTER_GROUP=["vm"]), ""),
    ],
)
def test_names(told: Proxy, name: str) -> None:
    assert registration.entry_name(told) == name


@pytest.mark.parametrize(
    ("told", "proven", "why", "waits"),
    [
        (proxy(), ("shop", "db"), "", False),
        (proxy(), ("shop", "web"), "service account 'db'", False),
        (proxy(), ("other", "db"), "namespace 'shop'", False),
        (proxy(), None, "prove", False),
        (proxy("host.example"), ("shop", "db"), "no name of a WorkloadEntry", False),
        (proxy(AUTO_REGISTER_GROUP="../x"), ("shop", "db"), "no name of a WorkloadEntry", False),
    ],
)
def test_refusals(told: Proxy, proven: tuple[str, str] | None, why: str, waits: bool) -> None:
    said, may_change = registration.refusal(told, proven, group(serviceAccount="db"))
    assert (why in said, bool(said), may_change) == (True, bool(why), waits)


def test_a_group_that_is_not_there_may_come() -> None:
    said, may_change = registration.refusal(proxy(), ("shop", "db"), None)
    assert said == "there is no WorkloadGroup shop/vm"
    assert may_change


def test_settings_of_a_proxy_may_be_anything() -> None:
    """They come over the wire."""
    for settings in (None, "text", [], {"readinessProbe": None}):
        made = registration.entry_of(group(), proxy(PROXY_CONFIG=settings), "istiod-1", 1.0)
        assert "proxy.istio.io/health-checks-enabled" not in made["metadata"]["annotations"]
    # What was made is what the mesh itself accepts.
    config, findings = load(made)
    assert config is not None
    assert findings == []


@pytest.mark.parametrize(
    ("annotations", "at"),
    [
        ({}, None),
        ({registration.DISCONNECTED: registration.stamp(100)}, None),
        ({registration.GROUP: "vm"}, None),
        ({registration.GROUP: "vm", registration.DISCONNECTED: registration.stamp(100)}, 110.0),
        ({registration.GROUP: "vm", registration.DISCONNECTED: "soon"}, 10.0),
        (
            {
                registration.GROUP: "vm",
                registration.CONNECTED: registration.stamp(90),
                registration.DISCONNECTED: registration.stamp(100),
            },
            None,
        ),
    ],
)
def test_removal(annotations: dict[str, str], at: float | None) -> None:
    assert registration.removal(presence(annotations), GRACE_S) == at


@pytest.mark.parametrize(
    ("entry", "held"),
    [
        (Presence("vm", "istiod-1", 100.0, None), True),
        (Presence("vm", "istiod-1", 90.0, None), True),
        (Presence("vm", "istiod-2", 90.0, None), False),
        (Presence("vm", "istiod-2", 110.0, None), True),
        (Presence("vm", "istiod-1", None, 110.0), False),
    ],
    ids=["says so", "came before", "was elsewhere", "has gone on", "was gone"],
)
def test_who_holds_a_machine_that_came_at_100(entry: Presence, held: bool) -> None:
    assert entry.held_by("istiod-1", 100.0) is held


def test_times_survive_their_text() -> None:
    found = presence(registration.connected("istiod-1", 1_700_000_000.25))
    assert (found.controller, found.since) == ("istiod-1", 1_700_000_000.25)


def test_a_condition_keeps_its_time_while_it_stays() -> None:
    other = {"type": "Reconciled", "status": "True"}
    first = registration.conditions_with_health([other, "odd"], True, "", 100)
    assert [c["type"] for c in first] == ["Reconciled", "Healthy"]
    again = registration.conditions_with_health(first, True, "", 200)
    assert again[1]["lastTransitionTime"] == first[1]["lastTransitionTime"]
    assert again[1]["lastProbeTime"] > first[1]["lastProbeTime"]
    worse = registration.conditions_with_health(again, False, "broken", 300)
    assert (worse[1]["status"], worse[1]["message"]) == ("False", "broken")
    assert worse[1]["lastTransitionTime"] > again[1]["lastTransitionTime"]
