"""IR values: equality without origins, remembered hashes, rendering without secrets."""

from __future__ import annotations

import dataclasses
import gc

import pytest

from meltemi.ir.render import render
from meltemi.ir.route import Forward, Route, RouteMatch, WeightedCluster
from meltemi.ir.secret import Secret
from meltemi.ir.value import per_value
from meltemi.model.origin import Origin


def _route(line: int) -> Route:
    action = Forward((WeightedCluster("c"),))
    return Route(
        "r", RouteMatch(), action, origins=(Origin("VirtualService", "d", "v", line=line),)
    )


def test_origins_do_not_make_a_difference() -> None:
    """Two equal values from two lines are one key of a cache."""
    one, two = _route(1), _route(2)
    assert one == two
    assert hash(one) == hash(two)
    assert one.origins != two.origins


def test_values_are_frozen() -> None:
    """Nobody changes a value that a cache holds."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        _route(1).name = "other"  # type: ignore[misc]


def test_a_copy_with_changes_hashes_anew() -> None:
    """The remembered hash does not travel to a changed copy."""
    one = _route(1)
    hash(one)
    other = dataclasses.replace(one, name="other")
    assert hash(other) != hash(one)
    assert other != one


def test_secrets_do_not_show() -> None:
    """Neither their representation nor their rendering holds their content."""
    secret = Secret("kubernetes://x", chain=b"CHAIN", key=b"TOPSECRET", ca=b"ROOTS")
    for text in (repr(secret), str(render(secret))):
        assert "TOPSECRET" not in text
        assert "CHAIN" not in text
        assert "ROOTS" not in text


def test_rendering_leaves_defaults_out() -> None:
    """Golden files show what was decided."""
    assert render(_route(3)) == {
        "name": "r",
        "match": {},
        "action": {"kind": "Forward", "clusters": [{"cluster": "c"}]},
        "origins": ["VirtualService/v.d"],
    }


def test_results_live_as_long_as_an_equal_value() -> None:
    """What the next snapshot has too is not made again; what it has not is forgotten with the last one."""
    made: list[str] = []

    @per_value
    def build(route: Route) -> str:
        made.append(route.name)
        return f"bytes of {route.name}"

    old = _route(1)
    assert build(old) == build(old) == "bytes of r"
    new = _route(2)  # the same route in the next snapshot
    assert build(new) == "bytes of r"
    assert made == ["r"]
    del old
    gc.collect()
    assert build(_route(3)) == "bytes of r"
    assert made == ["r"], "the newer value keeps the result"
    del new
    gc.collect()
    build(_route(4))
    assert made == ["r", "r"], "nobody had it any more"
