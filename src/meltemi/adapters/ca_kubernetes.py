"""Have certificates signed by the cluster: CertificateSigningRequests of certificates.k8s.io (Istio's ISTIOD_RA_KUBERNETES_API).

In: signing requests whose caller was identified here. Out: chains. istiod submits, approves, waits and cleans up. What a caller's
request asks for is looked at first, because the cluster's signer may sign anything that is approved: exactly the proven identity,
and nothing else. What comes back is checked once more.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Callable
from typing import Any

import structlog
from cryptography import x509

from meltemi.adapters.ca_external import ExternalRefused, check_chain
from meltemi.adapters.kube_api import KubeApi, KubeError, collection
from meltemi.kit.backoff import Backoff
from meltemi.model.mesh import MeshConfig

log = structlog.get_logger("ca")
DEADLINE_S = 15.0
TTL_S_MIN = 600  # the API server takes no less
REQUESTS = collection("certificates.k8s.io/v1", "certificatesigningrequests")
USAGES = ["digital signature", "key encipherment", "server auth", "client auth"]
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)


class KubernetesSigner:
    """``signer`` is K8S_SIGNER; a caller's CertSigner names one of ``domain`` (CERT_SIGNER_DOMAIN) instead."""

    def __init__(
        self,
        api: KubeApi,
        signer: str,
        domain: str = "",
        roots: Callable[[str], str] = lambda signer: "",
    ) -> None:
        """``roots`` tells the root certificate of a signer that does not give it with the chain."""
        self._api = api
        self._signer = signer
        self._domain = domain
        self._roots = roots

    async def sign(self, csr: str, identity: str, ttl_s: int, cert_signer: str = "") -> list[str]:
        """The chain, leaf first and root last. Raises ExternalRefused."""
        _check_request(csr, identity)
        signer = self._name_of(cert_signer)
        try:
            name = await self._submit(csr, signer, ttl_s)
            try:
                async with asyncio.timeout(DEADLINE_S):
                    text = await self._answer(name)
            finally:
                await self._remove(name)
        except KubeError as error:
            raise ExternalRefused(f"the API server refused the signing request: {error}") from error
        except TimeoutError as error:
            raise ExternalRefused(
                f"signer {signer} did not answer in {DEADLINE_S:.0f} s"
            ) from error
        chain = _CERTIFICATE.findall(text)
        check_chain(chain, csr, identity)
        return _with_root(chain, self._roots(signer), signer)

    async def close(self) -> None:
        """Nothing to end: the API client is istiod's own."""

    def _name_of(self, cert_signer: str) -> str:
        if not cert_signer:
            return self._signer
        if not self._domain or not re.fullmatch(r"[A-Za-z0-9._-]{1,253}", cert_signer):
            raise ExternalRefused(
                f"there is no signer {cert_signer!r} here: CERT_SIGNER_DOMAIN allows callers to choose one"
            )
        return f"{self._domain}/{cert_signer}"

    async def _submit(self, csr: str, signer: str, ttl_s: int) -> str:
        spec = {
            "request": base64.b64encode(csr.encode()).decode(),
            "signerName": signer,
            "usages": USAGES,
            "expirationSeconds": max(TTL_S_MIN, ttl_s),
        }
        body = {
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {"generateName": "csr-workload-", "labels": {"istio.io/csr": "workload"}},
            "spec": spec,
        }
        made = await self._api.json("POST", REQUESTS, body=body)
        name = str(made["metadata"]["name"])
        condition = {
            "type": "Approved",
            "status": "True",
            "reason": "WorkloadIdentityVerified",
            "message": "istiod has verified the identity that this certificate is for",
        }
        approved = {**made, "status": {**(made.get("status") or {}), "conditions": [condition]}}
        await self._api.json("PUT", f"{REQUESTS}/{name}/approval", body=approved)
        return name

    async def _answer(self, name: str) -> str:
        backoff = Backoff(0.05, 1.0)
        while True:
            found: dict[str, Any] = await self._api.json("GET", f"{REQUESTS}/{name}")
            status = found.get("status") or {}
            if certificate := status.get("certificate"):
                return base64.b64decode(certificate).decode(errors="replace")
            for condition in status.get("conditions") or ():
                if condition.get("type") in ("Denied", "Failed"):
                    raise ExternalRefused(
                        f"the signer says {condition.get('type')}: {condition.get('message')}"
                    )
            await asyncio.sleep(backoff.next())

    async def _remove(self, name: str) -> None:
        try:
            await self._api.json("DELETE", f"{REQUESTS}/{name}")
        except KubeError as error:
            if error.code != 404:
                log.warning("signing request not removed", name=name, error=str(error))


def root_of_signer(mesh: MeshConfig, signer: str) -> str:
    """The root that ``caCertificates`` of the mesh configuration gives for a signer; "" without one."""
    return next((e.pem for e in mesh.ca_certificates if e.pem and signer in e.cert_signers), "")


def _check_request(csr: str, identity: str) -> None:
    """The request must name the identity and nothing else: the signer may copy whatever it holds."""
    try:
        request = x509.load_pem_x509_csr(csr.encode())
        wanted = list(request.extensions)
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound) as error:
        raise ExternalRefused(f"csr is no signing request for {identity}: {error}") from error
    if list(names) != [x509.UniformResourceIdentifier(identity)] or len(wanted) != 1:
        raise ExternalRefused(f"the signing request asks for something else than {identity}")
    if request.subject.rdns:
        raise ExternalRefused("the signing request has a subject; workload certificates have none")


def _with_root(chain: list[str], root: str, signer: str) -> list[str]:
    """The chain with its root at the end."""
    roots = _CERTIFICATE.findall(root)
    last = x509.load_pem_x509_certificate(chain[-1].encode())
    if len(chain) > 1 and last.subject == last.issuer:
        return chain
    if not roots:
        raise ExternalRefused(
            f"the root of signer {signer} is not known: name it in caCertificates of the mesh configuration"
        )
    return [*chain, "".join(roots)]
