"""Serve the certificate authority over gRPC.

In: signing requests. Out: certificate chains. The identity is the authenticated caller's, on every port; what a
request says about it is not read. Signing runs in a few threads (the interpreter's lock is released there).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import structlog
from cryptography import x509

from meltemi.adapters.authenticate import Authenticator, CannotReview
from meltemi.adapters.ca_external import CERT_SIGNER, ExternalRefused, Signer
from meltemi.adapters.metrics import Metrics
from meltemi.ca import authority
from meltemi.ca.identity import Identity, NotAuthenticated, NotPermitted, impersonate
from meltemi.kit.clock import Clock
from meltemi.kit.limits import TokenBuckets
from meltemi.protos import CREATE_CERTIFICATE, ca_pb2

log = structlog.get_logger("ca")
THREADS = 2
IMPERSONATED = "ImpersonatedIdentity"
# A proxy asks once in hours; one that starts over and over asks more often. Without a pod's name (a client certificate, an
# OpenID token) all workloads of an account count as one caller, so that bucket is large.
POD_REQUESTS_PER_S, POD_REQUESTS_BURST = 0.5, 30.0
ACCOUNT_REQUESTS_PER_S, ACCOUNT_REQUESTS_BURST = 100.0, 2_000.0
Beside = Callable[[str, str], Collection[tuple[str, str]]]
# (caller, the request's metadata, gRPC's name of the peer, who signed, when it expires)
Note = Callable[[Identity, Mapping[str, Any], str, authority.Authority, float], None]


def new_serial() -> int:
    """A random positive serial number of at most 20 octets (RFC 5280)."""
    return x509.random_serial_number()


class CertificateServer:
    """``istio.v1.auth.IstioCertificateService``. The authority is read anew for each request: it can change."""

    def __init__(
        self,
        current: Callable[[], authority.Authority | None],
        authenticator: Authenticator,
        metrics: Metrics,
        clock: Clock,
        *,
        default_ttl_s: float = authority.WORKLOAD_TTL_S,
        max_ttl_s: float = authority.WORKLOAD_TTL_MAX_S,
        note: Note = lambda who, hints, peer, held, expires: None,
        trusted_nodes: tuple[str, ...] = (),
        beside: Beside = lambda namespace, pod: frozenset(),
        external: Signer | None = None,
    ) -> None:
        """``note`` hears of every certificate issued; ``external`` signs instead of ``current``.

        ``trusted_nodes`` and ``beside`` are those of ``identity.impersonate``.
        """
        self._trusted_nodes = trusted_nodes
        self._beside = beside
        self._external = external
        self._note = note
        self._current = current
        self._authenticator = authenticator
        self._metrics = metrics
        self._clock = clock
        self._default_ttl_s = default_ttl_s
        self._max_ttl_s = max_ttl_s
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="sign")
        self._of_pods: TokenBuckets[str] = TokenBuckets(POD_REQUESTS_PER_S, POD_REQUESTS_BURST)
        self._of_accounts: TokenBuckets[str] = TokenBuckets(
            ACCOUNT_REQUESTS_PER_S, ACCOUNT_REQUESTS_BURST
        )

    def handlers(self) -> grpc.GenericRpcHandler:
        """What to add to a gRPC server."""
        service, method = CREATE_CERTIFICATE.strip("/").split("/")
        handler = grpc.unary_unary_rpc_method_handler(
            self._create,
            request_deserializer=ca_pb2.IstioCertificateRequest.FromString,
            response_serializer=ca_pb2.IstioCertificateResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(service, {method: handler})

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown(wait=False)

    async def _create(self, request: Any, context: Any) -> Any:
        self._metrics.csr_count.inc()
        try:
            who = await self._authenticator.identify(context)
        except NotAuthenticated as error:
            self._metrics.authn_failures.inc()
            log.warning("caller not identified", peer=context.peer(), reason=str(error))
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        except CannotReview as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        if not self._in_time(who):
            self._metrics.sign_errors.labels("RATE_LIMITED").inc()
            log.warning("too many signing requests", identity=who.spiffe, pod=who.pod)
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "too many certificate requests of one caller; try again later",
            )
        hints = {name: value.string_value for name, value in request.metadata.fields.items()}
        if wanted := hints.get(IMPERSONATED):
            try:
                who = impersonate(who, wanted, self._trusted_nodes, self._beside)
            except NotPermitted as error:
                self._metrics.id_extraction_errors.inc()
                log.warning("impersonation refused", identity=who.spiffe, reason=str(error))
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        if self._external is not None:
            signer = hints.get(CERT_SIGNER, "")
            return await self._forward(self._external, request, who, signer, context)
        held = self._current()
        if held is None:
            self._metrics.sign_errors.labels("CA_NOT_READY").inc()
            await context.abort(
                grpc.StatusCode.UNAVAILABLE, "the certificate authority is not ready yet; try again"
            )
        assert held is not None, "abort raises"
        try:
            issued = await asyncio.get_running_loop().run_in_executor(
                self._threads, self._issue, held, request, who.spiffe
            )
        except authority.RequestRefused as error:
            if error.error == "CSR_ERROR":
                self._metrics.csr_parsing_errors.inc()
            self._metrics.sign_errors.labels(error.error).inc()
            log.warning("signing request refused", identity=who.spiffe, reason=str(error))
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        self._metrics.certs_issued.inc()
        self._note(who, hints, context.peer(), held, issued.expires)
        log.info(
            "certificate issued", identity=who.spiffe, serial=f"{issued.serial:x}", by=who.source
        )
        return ca_pb2.IstioCertificateResponse(cert_chain=issued.chain)

    def _in_time(self, who: Identity) -> bool:
        """Whether this caller asks no more often than a workload does. Node agents ask for all of their node's pods."""
        now = self._clock.monotonic()
        node = f"{who.namespace}/{who.service_account}" in self._trusted_nodes
        if who.pod and not node:
            return self._of_pods.take(f"{who.namespace}/{who.pod}", now)
        return self._of_accounts.take(who.spiffe, now)

    async def _forward(
        self, external: Signer, request: Any, who: Identity, signer: str, context: Any
    ) -> Any:
        """Let another authority sign, for the identity that was proven here and no longer than is allowed here."""
        if request.validity_duration > self._max_ttl_s:
            self._metrics.sign_errors.labels("TTL_ERROR").inc()
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"validity_duration is more than the maximum of {self._max_ttl_s:.0f} s",
            )
        try:
            chain = await external.sign(
                request.csr,
                who.spiffe,
                request.validity_duration or int(self._default_ttl_s),
                signer,
            )
        except ExternalRefused as error:
            self._metrics.sign_errors.labels("CERT_GENERATION_ERROR").inc()
            log.warning("external authority did not sign", identity=who.spiffe, reason=str(error))
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        self._metrics.certs_issued.inc()
        log.info("certificate issued", identity=who.spiffe, by="external authority")
        return ca_pb2.IstioCertificateResponse(cert_chain=chain)

    def _issue(self, held: authority.Authority, request: Any, identity: str) -> authority.Issued:
        return authority.issue(
            held,
            request.csr,
            identity,
            self._clock.now(),
            new_serial(),
            float(request.validity_duration),
            default_ttl_s=self._default_ttl_s,
            max_ttl_s=self._max_ttl_s,
        )


def chain_pem(issued: authority.Issued) -> bytes:
    """Leaf and intermediates, without the root, as servers show them."""
    return "".join(issued.chain[:-1]).encode()
