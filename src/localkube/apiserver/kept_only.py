"""Kinds that are served in full, but that nothing here acts on; whoever creates one is told.

In: a resource's name in the store. Out: a warning, as kubectl prints it, or "".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_EFFECTS: Final[Mapping[str, str]] = {
    "limitranges": "limits and defaults are not applied",
    "networkpolicies.networking.k8s.io": "no traffic is refused by it",
    "persistentvolumeclaims": "no volume will be bound to it",
    "replicationcontrollers": "no pods are made of it; use a Deployment",
    "resourcequotas": "no quota is enforced",
    "validatingadmissionpolicies.admissionregistration.k8s.io": "nothing is refused by it; use a webhook",
}


def kept_only_warning(storage: str, kind: str) -> str:
    """Return what to tell a client that creates an object of this kind."""
    effect = _EFFECTS.get(storage)
    return f"localkube keeps this {kind}, but {effect}" if effect else ""
