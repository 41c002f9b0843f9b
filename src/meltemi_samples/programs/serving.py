"""What the HTTP servers among the samples share: a log line a request, and an end that loses none."""

from __future__ import annotations

import logging
import signal
import ssl

from aiohttp import web

SHUTDOWN_S = 10.0
# As web servers have logged for thirty years, so that the usual tools read it.
ACCESS_LOG = '%a - - %t "%r" %s %b "%{Referer}i" "%{User-Agent}i"'

log = logging.getLogger("samples")


def start_logging() -> None:
    """Log to standard error, where ``kubectl logs`` finds it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")


def run(app: web.Application, port: int, tls: ssl.SSLContext | None = None) -> None:
    """Serve ``app`` on all addresses until SIGTERM or SIGINT; requests in flight are answered before it ends."""
    start_logging()
    # SIGTERM ends the server as Ctrl-C does; aiohttp then waits for handlers that still run.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    web.run_app(
        app,
        port=port,
        ssl_context=tls,
        shutdown_timeout=SHUTDOWN_S,
        access_log_format=ACCESS_LOG,
        print=lambda text: log.info(text.splitlines()[0]),
    )
