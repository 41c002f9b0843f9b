"""Find the keys of token issuers: their OpenID discovery documents and, where istiod shall fetch them, their key sets.

In: the RequestAuthentications of the world. Out: ``IssuerKeys`` in the world. Promises: what was found stays in use while an issuer
cannot be reached; every issuer is asked again at intervals, and soon after a failure; no redirect is followed, no long document read.
Rules: https://openid.net/specs/openid-connect-discovery-1_0.html (section 4), and Istio's ``PILOT_JWT_PUB_KEY_REFRESH_INTERVAL``
and ``PILOT_JWT_ENABLE_REMOTE_JWKS``.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import aiohttp
import structlog

from meltemi.adapters.metrics import Metrics
from meltemi.adapters.world import Change, World
from meltemi.kit.backoff import Backoff
from meltemi.kit.clock import Clock
from meltemi.model.config import Key
from meltemi.push.issuer_keys import key_addresses, unknown_issuers

log = structlog.get_logger("jwks")
WELL_KNOWN = "/.well-known/openid-configuration"
REFRESH_S = 20 * 60.0
DOCUMENT_BYTES_MAX = 1024 * 1024
# Certificates of private issuers, beside the system's: Istio's place for them.
EXTRA_ROOTS = Path("/cacerts/extra.pem")
_TIMEOUT = aiohttp.ClientTimeout(total=5)
_RETRY = (1.0, 60.0)


class Unanswered(Exception):
    """A document cannot be had; the text says why."""


class IssuerDiscovery:
    """Runs beside the pipeline."""

    def __init__(
        self, world: World, metrics: Metrics, clock: Clock, refresh_s: float = REFRESH_S
    ) -> None:
        self._world = world
        self._metrics = metrics
        self._clock = clock
        self._refresh_s = refresh_s
        self._wake = asyncio.Event()
        self._due: dict[tuple[str, str], float] = {}
        self._pauses: dict[tuple[str, str], Backoff] = {}

    def changed(self, change: Change) -> None:
        """The world's watcher."""
        if change.everything or any(
            isinstance(key, Key) and key.kind == "RequestAuthentication" for key in change.keys
        ):
            self._wake.set()

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            await self.refresh()
            now = self._clock.monotonic()
            delay_s = max(0.0, min(self._due.values(), default=now + 3600.0) - now)
            try:
                async with asyncio.timeout(delay_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    async def refresh(self) -> None:
        """Ask every issuer whose time has come, at once; forget those that nobody names any more."""
        configs = list(self._world.configs.values())
        wanted = {("issuer", name) for name in unknown_issuers(configs)}
        if not self._world.issuer_keys.by_proxies:
            known = self._world.issuer_keys.addresses.values()
            wanted |= {("keys", uri) for uri in (*key_addresses(configs), *known)}
        self._due = {what: self._due.get(what, float("-inf")) for what in wanted}
        now = self._clock.monotonic()
        due = [what for what, at in self._due.items() if at <= now]
        await asyncio.gather(*(self._ask(*what) for what in due))

    async def _ask(self, kind: str, name: str) -> None:
        what = (kind, name)
        answers: dict[str, Callable[[str], Awaitable[str]]] = {"issuer": _address, "keys": _keys}
        try:
            found = await answers[kind](name)
        except Unanswered as error:
            self._metrics.jwks_fetch_fail.inc()
            pause_s = self._pauses.setdefault(what, Backoff(*_RETRY)).next()
            log.warning(
                "issuer not answered",
                kind=kind,
                name=name,
                error=str(error),
                retry_s=round(pause_s),
            )
            self._due[what] = self._clock.monotonic() + pause_s
            return
        self._metrics.jwks_fetch_success.inc()
        self._pauses.pop(what, None)
        self._due[what] = self._clock.monotonic() + self._refresh_s
        self._keep(kind, name, found)

    def _keep(self, kind: str, name: str, found: str) -> None:
        held = self._world.issuer_keys
        before = held.addresses if kind == "issuer" else held.sets
        if before.get(name) == found:
            return
        log.info("issuer's keys found", kind=kind, name=name)
        after = MappingProxyType({**before, name: found})
        made = replace(held, addresses=after) if kind == "issuer" else replace(held, sets=after)
        self._world.set_issuer_keys(made)
        # The key set of an address that was just found is wanted now.
        self._wake.set()


async def _address(issuer: str) -> str:
    """``jwks_uri`` of an issuer's discovery document."""
    uri = issuer.rstrip("/") + WELL_KNOWN
    try:
        document = json.loads(await _fetch(uri))
    except (ValueError, RecursionError) as error:
        raise Unanswered(f"{uri} is not JSON") from error
    body = document if isinstance(document, dict) else {}
    if str(body.get("issuer", "")).rstrip("/") != issuer.rstrip("/"):
        raise Unanswered(f"{uri} is of issuer {body.get('issuer')!r}")
    address = body.get("jwks_uri")
    if not isinstance(address, str) or not address.startswith(("https://", "http://")):
        raise Unanswered(f"{uri} names no jwks_uri")
    if uri.startswith("https://") and not address.startswith("https://"):
        raise Unanswered(f"{uri} names a jwks_uri without TLS")
    return address


async def _keys(uri: str) -> str:
    return await _fetch(uri)


async def _fetch(uri: str) -> str:
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT, trust_env=True) as session,
            session.get(uri, allow_redirects=False, ssl=_trusted()) as answer,
        ):
            if answer.status != 200:
                raise Unanswered(f"{uri} answered {answer.status}")
            data = await answer.content.read(DOCUMENT_BYTES_MAX)
            return data.decode()
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise Unanswered(f"{uri} cannot be fetched: {error or type(error).__name__}") from error


def _trusted() -> ssl.SSLContext:
    context = ssl.create_default_context()
    if EXTRA_ROOTS.is_file():
        context.load_verify_locations(EXTRA_ROOTS)
    return context
