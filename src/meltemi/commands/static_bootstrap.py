"""One static file from a proxy's compiled resources, which ``envoy -c`` runs without a control plane.

In: ``Compiled`` and, for the workload's identity, a folder with the agent's SDS files or nothing. Out: a bootstrap as
JSON-ready values. Routes, endpoints and secrets are moved into the resources that name them. Without a folder the
identity is made up: a certificate of a throw-away authority, so that the file runs anywhere and is trusted nowhere.
"""

from __future__ import annotations

import secrets as randomness
import time
from collections.abc import Iterable
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from meltemi.agent.bootstrap import XDS_CLUSTER, build_bootstrap
from meltemi.agent.offline import offline_settings
from meltemi.ca.authority import issue_server, key_pem, self_signed
from meltemi.commands.compiled import Compiled
from meltemi.envoy.json_form import message_of, to_json
from meltemi.envoy.patch_bootstrap import merged_bootstrap
from meltemi.model.names import (
    BOOTSTRAP_TYPE,
    CDS_TYPE,
    CERT_DIR,
    EDS_TYPE,
    LDS_TYPE,
    RDS_TYPE,
    SDS_DEFAULT,
    SDS_ROOTCA,
    SDS_TYPE,
    spiffe_id,
)

_DAY_S = 86_400.0


def static_bootstrap(made: Compiled, trust_domain: str, certificates: str = "") -> dict[str, Any]:
    """The whole file."""
    settings = offline_settings(made.proxy, trust_domain)
    bootstrap, _ = build_bootstrap(settings, with_token=False)
    del bootstrap["dynamic_resources"]
    static = bootstrap["static_resources"]
    listeners = _json(made, LDS_TYPE)
    clusters = _json(made, CDS_TYPE)
    secrets = _json(made, SDS_TYPE)
    _inline_routes(listeners, {route["name"]: route for route in _json(made, RDS_TYPE)})
    assignments = {e["clusterName"]: e for e in _json(made, EDS_TYPE)}
    _inline_endpoints((*static["clusters"], *clusters), assignments)
    if certificates:
        _move_files((listeners, clusters), certificates)
    else:
        _name_secrets((listeners, clusters))
        secrets += _throw_away(trust_domain, made)
    kept = [cluster for cluster in static["clusters"] if cluster["name"] != XDS_CLUSTER]
    static["clusters"] = [*kept, *clusters]
    static["listeners"] = [*static["listeners"], *listeners]
    static["secrets"] = secrets
    patches = [(r.name, r.body) for r in made.resources[BOOTSTRAP_TYPE]]
    return merged_bootstrap(bootstrap, patches) if patches else bootstrap


def _json(made: Compiled, type_url: str) -> list[dict[str, Any]]:
    return [to_json(message_of(type_url, r.body)) for r in made.resources[type_url]]


def _walk(value: Any) -> Any:
    """Every object inside a JSON value, outermost first."""
    if isinstance(value, dict):
        yield value
        for entry in value.values():
            yield from _walk(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _walk(entry)


def _inline_routes(listeners: list[dict[str, Any]], routes: dict[str, dict[str, Any]]) -> None:
    for entry in _walk(listeners):
        rds = entry.get("rds")
        if isinstance(rds, dict) and "routeConfigName" in rds:
            name = entry.pop("rds")["routeConfigName"]
            entry["routeConfig"] = routes.get(name, {"name": name})


def _inline_endpoints(
    clusters: Iterable[dict[str, Any]], assignments: dict[str, dict[str, Any]]
) -> None:
    for cluster in clusters:
        if cluster.get("type") == "EDS":
            name = cluster.pop("edsClusterConfig", {}).get("serviceName", cluster["name"])
            cluster["type"] = "STATIC"
            cluster["loadAssignment"] = {
                **assignments.get(name, {}),
                "clusterName": cluster["name"],
            }


def _sources(values: Any) -> Any:
    """Objects ``{name, sdsConfig}`` and where they take their secret from."""
    for entry in _walk(values):
        config = entry.get("sdsConfig")
        if isinstance(config, dict) and "name" in entry:
            yield entry, config


def _move_files(values: Any, folder: str) -> None:
    for entry, config in _sources(values):
        files = config.get("pathConfigSource")
        if files is None:
            entry.pop("sdsConfig")  # a gateway's secret: it is in the file
            continue
        files["path"] = files["path"].replace(CERT_DIR, folder)


def _name_secrets(values: Any) -> None:
    """A secret config without a source means a secret of the same file."""
    for entry, _ in list(_sources(values)):
        entry.pop("sdsConfig")


def _throw_away(trust_domain: str, made: Compiled) -> list[dict[str, Any]]:
    now = time.time()
    authority = self_signed(
        ec.generate_private_key(ec.SECP256R1()), now, randomness.randbits(120), "compile", _DAY_S
    )
    key = ec.generate_private_key(ec.SECP256R1())
    identity = spiffe_id(trust_domain, made.proxy.namespace, made.proxy.service_account)
    issued = issue_server(authority, key, (), identity, now, randomness.randbits(120), _DAY_S)
    pair = {
        "certificateChain": {"inlineString": "".join(issued.chain)},
        "privateKey": {"inlineString": key_pem(key)},
    }
    return [
        {"name": SDS_DEFAULT, "tlsCertificate": pair},
        {
            "name": SDS_ROOTCA,
            "validationContext": {"trustedCa": {"inlineString": authority.roots}},
        },
    ]
