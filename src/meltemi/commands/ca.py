"""``ca``: the mesh's certificate authority: its state, and the exchange of its root.

``ca status`` shows who signs, what is trusted, and how many proxies trust and hold what. ``ca rotate`` replaces
the root (or plugs another authority in) without a request lost; the control plane carries it out, so the
command can be interrupted at any time, and ``--watch`` only looks.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import click

from meltemi.commands.cluster import connection_flags
from meltemi.commands.failure import CommandError, run

_WATCH_S = 1.0


@click.group()
def ca() -> None:
    """The mesh's certificate authority."""


@ca.command()
@click.option("-i", "--istioNamespace", "namespace", default="istio-system", show_default=True)
@click.option("-o", "--output", type=click.Choice(["short", "json"]), default="short")
@connection_flags
def status(namespace: str, output: str, kubeconfig: str, context: str) -> None:
    """Who signs, what is trusted, and what proxies hold."""
    found = run(_with_api(kubeconfig, context, lambda api: _status(api, namespace)))
    click.echo(json.dumps(found, indent=2) if output == "json" else _text(found))


@ca.command()
@click.option(
    "--to",
    "folder",
    default="",
    help="folder with ca-cert.pem, ca-key.pem, cert-chain.pem, root-cert.pem",
)
@click.option("--watch", is_flag=True, help="stay until the rotation is over")
@click.option("--abort", "order", flag_value="abort", help="go back to the old authority")
@click.option("--resume", "order", flag_value="resume", help="go forward again after --abort")
@click.option("-i", "--istioNamespace", "namespace", default="istio-system", show_default=True)
@connection_flags
def rotate(
    folder: str, watch: bool, order: str | None, namespace: str, kubeconfig: str, context: str
) -> None:
    """Replace the root: trust both, sign with the new one, withdraw the old one.

    Without --to a new self-signed root is made; with it the authority in the folder is plugged in.
    """
    if order and folder:
        raise click.UsageError(f"--{order} is for the rotation that runs; it takes no --to")

    async def work(api: Any) -> None:
        if order:
            await _order(api, namespace, order)
        else:
            await _start(api, namespace, folder)
        if watch:
            await _watch(api, namespace)
        else:
            click.echo("The control plane carries it out. Watch it with: meltemi ca status")

    run(_with_api(kubeconfig, context, work))


async def _with_api(kubeconfig: str, context: str, work: Any) -> Any:
    from meltemi.adapters import kube_connection
    from meltemi.adapters.kube_api import KubeApi

    async with KubeApi(kube_connection.load(kubeconfig, context), "meltemi") as api:
        return await work(api)


async def _secret(api: Any, namespace: str, name: str) -> dict[str, Any] | None:
    from meltemi.adapters.kube_api import KubeError, collection

    try:
        found: dict[str, Any] = await api.json("GET", collection("v1", "secrets", namespace, name))
    except KubeError as error:
        if error.code == 404:
            return None
        raise
    return found


def _decoded(secret: dict[str, Any] | None) -> dict[str, bytes]:
    return {k: base64.b64decode(v) for k, v in ((secret or {}).get("data") or {}).items()}


async def _own(api: Any, namespace: str) -> dict[str, Any]:
    """The Secret of the present authority: the plugged-in one, or else the mesh's own."""
    from meltemi.ca import secrets

    for name in (secrets.PLUGGED_SECRET, secrets.SELF_SIGNED_SECRET):
        if (found := await _secret(api, namespace, name)) is not None:
            return found
    raise CommandError(
        f"there is no authority in namespace {namespace}; install the mesh first, or name its namespace with -i"
    )


async def _start(api: Any, namespace: str, folder: str) -> None:
    from meltemi.adapters import ca_rotation
    from meltemi.adapters.kube_api import KubeError
    from meltemi.ca import authority, rotation, secrets

    own = await _own(api, namespace)
    if folder:
        new, target = _plug(Path(folder)), secrets.PLUGGED_SECRET
    elif own["metadata"]["name"] == secrets.PLUGGED_SECRET:
        raise CommandError(
            "this mesh's authority is plugged in (Secret cacerts); name the folder of the next one: "
            "meltemi ca rotate --to DIR"
        )
    else:
        new, target = _self_signed(_decoded(own)), secrets.SELF_SIGNED_SECRET
    state = rotation.begin(uuid.uuid4().hex[:8], target, time.time())
    try:
        await ca_rotation.start(api, namespace, state, new)
    except KubeError as error:
        if error.code != 409:
            raise
        raise CommandError(
            "a rotation runs already; see it with: meltemi ca status, go on with: meltemi ca rotate --resume, or "
            "back with: meltemi ca rotate --abort"
        ) from error
    name = authority.fingerprint(new.certificate)
    click.echo(f"Rotation {state.id} has begun, to authority {name}.")


def _plug(folder: Path) -> Any:
    from meltemi.ca import bundle

    if not folder.is_dir():
        raise CommandError(f"--to {folder} is not a folder")
    data = {n: (folder / n).read_bytes() for n in bundle.FILES if (folder / n).is_file()}
    held, findings = bundle.examine(data, time.time(), str(folder))
    for finding in findings:
        click.echo(str(finding), err=True)
    if held is None:
        raise CommandError("nothing was changed: this authority cannot be used")
    return held


def _self_signed(own: dict[str, bytes]) -> Any:
    """A new root of the same name, key size and life as the present one."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.x509.oid import NameOID

    from meltemi.ca import authority, secrets

    try:
        before = secrets.authority_of(own)
    except ValueError as error:
        raise CommandError(f"Secret {secrets.SELF_SIGNED_SECRET}: {error}") from error
    bits = before.key.key_size if isinstance(before.key, rsa.RSAPrivateKey) else 2048
    names = before.certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    life = before.certificate.not_valid_after_utc - before.certificate.not_valid_before_utc
    return authority.self_signed(
        rsa.generate_private_key(65537, bits),
        time.time(),
        x509.random_serial_number(),
        str(names[0].value) if names else "cluster.local",
        life.total_seconds() - authority.CLOCK_SKEW_S,
    )


async def _order(api: Any, namespace: str, order: str) -> None:
    from meltemi.adapters import ca_rotation
    from meltemi.ca import rotation, secrets

    kept = await _secret(api, namespace, rotation.SECRET)
    if kept is None:
        raise CommandError(f"no rotation runs, so there is nothing to {order}")
    own = await _own(api, namespace)
    try:
        data = _decoded(kept)
        state = rotation.read_state(data.get(rotation.STATE_KEY, b"").decode())
        pair = rotation.Pair(secrets.authority_of(_decoded(own)), secrets.authority_of(data))
        change = rotation.abort if order == "abort" else rotation.resume
        following = change(state, time.time(), pair)
    except (ValueError, rotation.OrderRefused) as error:
        raise CommandError(str(error)) from error
    if following != state:
        await ca_rotation.write_state(api, namespace, following, kept)
    click.echo(f"Rotation {state.id}: {rotation.TEXT[following.phase]}.")


async def _status(api: Any, namespace: str) -> dict[str, Any]:
    """Everything there is to say, as plain values."""
    from meltemi.adapters import ca_rotation
    from meltemi.ca import authority, rotation, secrets

    own = await _own(api, namespace)
    kept = await _secret(api, namespace, rotation.SECRET)
    reports = await ca_rotation.read_reports(api, namespace)
    alive = await ca_rotation.read_replicas(api, namespace)
    counted = {name: report for name, report in reports.items() if name in alive}
    connected = rotation.proof_of(counted).proxies
    known = rotation.proof_of(reports).proxies
    proof = rotation.Proof(
        {name: known.get(name) for name in connected}, rotation.proof_of(counted).replicas
    )
    try:
        base = secrets.authority_of(_decoded(own))
        state = pair = None
        if kept is not None:
            data = _decoded(kept)
            state = rotation.read_state(data.get(rotation.STATE_KEY, b"").decode())
            pair = rotation.Pair(base, secrets.authority_of(data))
    except ValueError as error:
        raise CommandError(str(error)) from error
    held = rotation.effective(pair, state.phase) if pair and state else base
    trusts = Counter(name for h in proof.proxies.values() if h for name in h.trusts)
    issuers = Counter(h.issuer for h in proof.proxies.values() if h)
    found: dict[str, Any] = {
        "source": own["metadata"]["name"],
        "signs": authority.fingerprint(held.certificate),
        "expires": time.strftime("%Y-%m-%d", time.gmtime(held.expires)),
        "trusted": list(authority.fingerprints(held.roots)),
        "proxies": len(proof.proxies),
        "unknown": sum(1 for h in proof.proxies.values() if h is None),
        "trustedBy": dict(sorted(trusts.items())),
        "issuedBy": dict(sorted(issuers.items())),
        "rotation": None,
    }
    if state and pair:
        found["rotation"] = {
            "id": state.id,
            "phase": state.phase.value,
            "text": rotation.TEXT[state.phase],
            "old": authority.fingerprint(pair.old.certificate),
            "new": authority.fingerprint(pair.new.certificate),
            "waitingFor": list(rotation.waiting_for(state, pair, proof)),
        }
    return found


def _text(found: dict[str, Any]) -> str:
    lines = [
        f"authority {found['signs']} (Secret {found['source']}), until {found['expires']}",
        f"trusted roots: {', '.join(found['trusted'])}",
        f"{found['proxies']} proxies connected"
        + (f", of {found['unknown']} nothing is known yet" if found["unknown"] else ""),
    ]
    lines += [f"  {count} trust {name}" for name, count in found["trustedBy"].items()]
    lines += [
        f"  {count} hold a certificate of {name}" for name, count in found["issuedBy"].items()
    ]
    if turning := found["rotation"]:
        lines.append(
            f"rotation {turning['id']} from {turning['old']} to {turning['new']}: {turning['text']} "
            f"({turning['phase']})"
        )
        lines += [f"  waiting: {line}" for line in turning["waitingFor"]]
    else:
        lines.append("no rotation runs")
    return "\n".join(lines)


async def _watch(api: Any, namespace: str) -> None:
    """Print what changes until the rotation is over."""
    from meltemi.adapters.kube_api import KubeError

    shown = ""
    while True:
        try:
            found = await _status(api, namespace)
        except KubeError as error:
            click.echo(f"(waiting for the cluster: {error})", err=True)
            await asyncio.sleep(_WATCH_S)
            continue
        text = _text(found)
        if text != shown:
            click.echo(f"{text}\n")
            shown = text
        if found["rotation"] is None:
            return
        await asyncio.sleep(_WATCH_S)
