"""One certificate request, in a process of its own that ends with the answer.

In: a JSON object on stdin (``CertificateRequest``). Out: a JSON object on stdout (``CertificateAnswer``), and
exit code 0 whenever there is one. gRPC and cryptography stay out of the agent that way, which lives as long
as its pod and must stay small. Run as ``python -m meltemi.adapters.agent_csr``; ``request_certificate`` is
the agent's side of it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict, dataclass

from meltemi.agent.secrets import SecretText

_PROGRAM = "meltemi.adapters.agent_csr"
_NO_KEY = SecretText("")


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """Whom to ask, how to verify it, and for what. ``mark`` is a socket mark or 0; times are seconds.

    ``proxy`` (``pod.namespace``) and ``trusted`` (the roots that Envoy was given, PEM) tell istiod what this proxy trusts already,
    which a rotation of the root waits for.
    """

    address: str
    server_name: str
    plaintext: bool
    root_file: str
    token_file: str
    identity: str
    ttl_s: int
    rsa_bits: int = 0
    mark: int = 0
    proxy: str = ""
    trusted: str = ""
    deadline_s: float = 10.0


@dataclass(frozen=True, slots=True)
class CertificateAnswer:
    """``error`` is empty on success; ``chain`` is leaf first, root last, PEM."""

    error: str = ""
    chain: tuple[str, ...] = ()
    key: SecretText = _NO_KEY
    not_before: float = 0.0
    not_after: float = 0.0


async def request_certificate(request: CertificateRequest) -> CertificateAnswer:
    """Run the request in a child process; every failure comes back as ``error``."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        _PROGRAM,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        question = json.dumps(asdict(request)).encode()
        # The child has its own deadline; this one is for a child that hangs.
        async with asyncio.timeout(request.deadline_s + 10.0):
            out, err = await process.communicate(question)
    except TimeoutError:
        return CertificateAnswer(error="the certificate request hung and was ended")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        fields = json.loads(out)
        return CertificateAnswer(
            error=str(fields["error"]),
            chain=tuple(fields["chain"]),
            key=SecretText(fields["key"]),
            not_before=float(fields["not_before"]),
            not_after=float(fields["not_after"]),
        )
    except (ValueError, KeyError, TypeError):
        last = err.decode(errors="replace").strip().rpartition("\n")[2]
        return CertificateAnswer(error=f"the certificate request failed: {last or 'no answer'}")


def main() -> None:
    """The child: read the request, ask, answer."""
    # Only the child pays for these imports.
    from meltemi.adapters.agent_csr_client import ask

    request = CertificateRequest(**json.load(sys.stdin))
    answer = ask(request)
    json.dump(asdict(answer), sys.stdout)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
