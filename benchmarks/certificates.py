"""Certificates per second of one istiod, and how long a thousand proxies take that renew at once.

Signing alone on one thread, and on the server's own number of threads; both in one run, as a ratio. Run as
``python -m benchmarks.certificates``, which appends to ``benchmarks/results/certificates.jsonl``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from benchmarks.record import conclude
from meltemi.adapters.ca_grpc import THREADS, new_serial
from meltemi.ca import authority

RESULTS = Path(__file__).parent / "results" / "certificates.jsonl"
PROXIES = 1000
WHO = "spiffe://cluster.local/ns/bookinfo/sa/reviews"


def csr_of(key: Any) -> str:
    """A signing request."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(key: authority.PrivateKey) -> dict[str, float]:
    """Of an authority with this key."""
    held = authority.self_signed(key, time.time(), 1, "cluster.local")
    csr = csr_of(ec.generate_private_key(ec.SECP256R1()))

    def sign(_: int) -> None:
        authority.issue(held, csr, WHO, time.time(), new_serial())

    alone = seconds(lambda: list(map(sign, range(PROXIES))))
    with ThreadPoolExecutor(THREADS) as pool:
        together = seconds(lambda: list(pool.map(sign, range(PROXIES))))
    return {
        "certificates_per_second": round(PROXIES / together),
        "seconds_for_1000_proxies": round(together, 3),
        "speedup_by_threads": round(alone / together, 2),
    }


def main() -> None:
    """Measure both kinds of authority."""
    made: dict[str, authority.PrivateKey] = {
        "rsa2048": rsa.generate_private_key(65537, 2048),
        "p256": ec.generate_private_key(ec.SECP256R1()),
    }
    conclude(
        RESULTS,
        {
            f"{name}_{what}": value
            for name, key in made.items()
            for what, value in measure(key).items()
        },
    )


if __name__ == "__main__":
    main()
