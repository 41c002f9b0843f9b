"""How a Deployment moves from old ReplicaSets to a new one. Pure arithmetic on sizes.

In: the Deployment's numbers and the ReplicaSets' sizes. Out: new sizes. Promises, for
RollingUpdate: never more than replicas + maxSurge pods, never fewer than replicas - maxUnavailable
available ones because of us. Source: the Kubernetes documentation "Rolling Update Deployment":
percentages of maxSurge round up, those of maxUnavailable down, and they cannot both be zero.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SetSize:
    """One ReplicaSet: wanted pods (spec), existing pods and available pods (status)."""

    name: str
    wanted: int
    existing: int
    available: int


def resolve_percentage(value: int | str | None, total: int, *, round_up: bool) -> int:
    """An int-or-percent field -> a count. Anything unreadable counts as 0."""
    if value is None:
        return 0
    if isinstance(value, int):
        return max(0, value)
    text = value.strip()
    if not text.endswith("%") or not text[:-1].isdigit():
        return int(text) if text.isdigit() else 0
    share = int(text[:-1]) * total / 100
    return math.ceil(share) if round_up else math.floor(share)


def surge_and_unavailable(
    max_surge: int | str | None, max_unavailable: int | str | None, replicas: int
) -> tuple[int, int]:
    """(maxSurge, maxUnavailable) in pods; both zero would never move, so then one may be missing."""
    surge = resolve_percentage(max_surge, replicas, round_up=True)
    unavailable = resolve_percentage(max_unavailable, replicas, round_up=False)
    if surge == 0 and unavailable == 0:
        unavailable = 1
    return surge, min(unavailable, replicas) if replicas else unavailable


def rolling_step(
    replicas: int, surge: int, unavailable: int, new: SetSize, old: Sequence[SetSize]
) -> dict[str, int]:
    """The sizes to set now, by ReplicaSet name; sets that stay as they are are left out."""
    if new.wanted > replicas:
        return {new.name: replicas}
    total = new.wanted + sum(o.wanted for o in old)
    if new.wanted < replicas:
        room = replicas + surge - total
        if room > 0:
            return {new.name: new.wanted + min(room, replicas - new.wanted)}
    return _shrink_old(replicas, unavailable, new, old)


def _shrink_old(
    replicas: int, unavailable: int, new: SetSize, old: Sequence[SetSize]
) -> dict[str, int]:
    min_available = replicas - unavailable
    total = new.wanted + sum(o.wanted for o in old)
    # Pods of the new set that are not available yet still count as missing.
    allowed = total - min_available - (new.wanted - min(new.available, new.wanted))
    sizes: dict[str, int] = {}
    remaining = {o.name: o.wanted for o in old}
    # First the unhealthy ones: removing them costs no capacity.
    for size in old:
        if allowed <= 0:
            break
        broken = max(0, size.wanted - size.available)
        cut = min(broken, allowed, remaining[size.name])
        if cut > 0:
            remaining[size.name] -= cut
            sizes[size.name] = remaining[size.name]
            allowed -= cut
    available = new.available + sum(min(o.available, remaining[o.name]) for o in old)
    spare = available - min_available
    for size in old:
        if spare <= 0:
            break
        cut = min(remaining[size.name], spare)
        if cut > 0:
            remaining[size.name] -= cut
            sizes[size.name] = remaining[size.name]
            spare -= cut
    return sizes


def proportional_sizes(sizes: Sequence[SetSize], total: int) -> dict[str, int]:
    """Spread `total` pods over the active sets in proportion to their sizes (a Deployment that is
    scaled while it rolls out or is paused). The largest, then newest (last given), get the rest."""
    current = sum(s.wanted for s in sizes)
    if current == total or not sizes:
        return {}
    if current == 0:
        return {sizes[-1].name: total}
    shares = {s.name: s.wanted * total // current for s in sizes}
    rest = total - sum(shares.values())
    order = sorted(range(len(sizes)), key=lambda i: (sizes[i].wanted, i), reverse=True)
    for index in order[:rest]:
        shares[sizes[index].name] += 1
    return {s.name: shares[s.name] for s in sizes if shares[s.name] != s.wanted}
