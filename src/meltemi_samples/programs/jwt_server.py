"""A key server: gives the public keys of an issuer, over HTTP (port 8000) and HTTPS (port 8443).

Every path answers with the same JSON Web Key Set: that of the file named by JWKS_FILE, or ``jwt-server/jwks.json``
of the samples. The file is read for each request, so that keys can be exchanged while it runs. The certificate for
HTTPS is TLS_CERT and TLS_KEY, or one that is made at start and signed by nobody.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import logging
import os
import signal
import ssl
import tempfile
from pathlib import Path

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from meltemi_samples.programs import serving

KEYS = Path(__file__).parents[1] / "jwt-server" / "jwks.json"
NAMES = ("jwt-server", "localhost")
LIFE = datetime.timedelta(days=365)

log = logging.getLogger("jwt-server")


async def keys(_request: web.Request) -> web.Response:
    """The key set; 500 when the file cannot be read."""
    try:
        text = Path(os.environ.get("JWKS_FILE") or KEYS).read_text()
    except OSError as error:
        return web.Response(status=500, text=f"the keys cannot be read: {error.strerror}\n")
    return web.Response(text=text, content_type="application/json")


def throw_away_certificate() -> tuple[bytes, bytes]:
    """(certificate, key) in PEM, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAMES[0])])
    now = datetime.datetime.now(datetime.UTC)  # noqa: TID251 - a small program for people to read
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + LIFE)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(each) for each in NAMES]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    return made.public_bytes(encoding), key.private_bytes(
        encoding, serialization.PrivateFormat.PKCS8, plain
    )


def tls() -> ssl.SSLContext:
    """How HTTPS is served."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    given = os.environ.get("TLS_CERT"), os.environ.get("TLS_KEY")
    if given[0] and given[1]:
        context.load_cert_chain(given[0], given[1])
        return context
    # The ssl module reads certificates from files only.
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(throw_away_certificate()))
        file.flush()
        context.load_cert_chain(file.name)
    return context


async def serve(http_port: int, https_port: int) -> None:
    """Answer on both ports until SIGTERM or SIGINT."""
    app = web.Application()
    app.router.add_get("/{path:.*}", keys)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, None, http_port).start()
    await web.TCPSite(runner, None, https_port, ssl_context=tls()).start()
    log.info("HTTP on %d, HTTPS on %d", http_port, https_port)
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    await over.wait()
    await runner.cleanup()


def main() -> None:
    """Flags: the two ports."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--http", type=int, default=8000)
    parser.add_argument("--https", type=int, default=8443)
    flags = parser.parse_args()
    serving.start_logging()
    asyncio.run(serve(flags.http, flags.https))


if __name__ == "__main__":
    main()
