"""IR values: equality without origins, remembered hashes, rendering without secrets."""

from __future__ import annotations

import dataclasses

import pytest

from meltemi.ir.render import render
from meltemi.ir.route import Forward, Route, RouteMatch, WeightedCluster
from meltemi.ir.secret import Secret
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
