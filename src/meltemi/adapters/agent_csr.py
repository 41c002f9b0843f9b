"""One certificate request, in a process of its own that ends with the answer.

In: a JSON object on stdin (``CertificateRequest``). Out: a JSON object on stdout (``CertificateAnswer``), and
exit code 0 whenever there is one. Run as ``python -m meltemi.adapters.agent_csr``; ``request_certificate`` is
the agent's side of it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass

from meltemi.adapters.agent_call import IstiodCall, NoAnswerError, ask_in_child
from meltemi.agent.secrets import SecretText

_PROGRAM = "meltemi.adapters.agent_csr"
_NO_KEY = SecretText("")


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateRequest(IstiodCall):
    """Whom to ask, and for what.

    ``proxy`` (``pod.namespace``) and ``trusted`` (the roots that Envoy was given, PEM) tell istiod what this proxy trusts already,
    which a rotation of the root waits for.
    """

    identity: str
    ttl_s: int
    rsa_bits: int = 0
    curve: str = "P256"
    proxy: str = ""


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
    try:
        fields = await ask_in_child(_PROGRAM, asdict(request), request.deadline_s)
        return CertificateAnswer(
            error=str(fields["error"]),
            chain=tuple(fields["chain"]),
            key=SecretText(fields["key"]),
            not_before=float(fields["not_before"]),
            not_after=float(fields["not_after"]),
        )
    except NoAnswerError as error:
        return CertificateAnswer(error=f"the certificate request failed: {error}")


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
