"""Files that the agent gives to Envoy: credentials, SDS documents, the bootstrap.

In: texts. Out: files. Promises that a reader sees either the old or the new content, never a part; that
private keys and tokens are readable by their owner only; and that a certificate and its key change together (one
file is replaced by rename).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from meltemi.agent import secrets
from meltemi.agent.certificates import Validity
from meltemi.agent.secrets import SecretText

_CERTIFICATE_BEGIN = "-----BEGIN CERTIFICATE-----"
_CERTIFICATE_END = "-----END CERTIFICATE-----"
_NOTE_FILE = "validity.json"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A workload's certificate chain (leaf first, no root), its key, and the roots it trusts; all PEM.

    ``crl``: the revocation lists that peers are looked up in, or ``""``.
    """

    certificate: str
    key: SecretText
    roots: str
    validity: Validity
    identity: str
    crl: str = ""


def write_atomically(path: Path, text: str, mode: int = 0o600) -> None:
    """Replace ``path`` by a file with this text and mode, by rename in the same directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    temporary.replace(path)


def read_text(path: Path) -> str:
    """The content, or ``""`` when the file is missing or unreadable."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def split_pem(text: str) -> list[str]:
    """The certificates of a PEM bundle, each ending in a newline, without the text between them."""
    parts = [part.partition(_CERTIFICATE_BEGIN) for part in text.split(_CERTIFICATE_END)]
    return [f"{begin}\n{body.strip()}\n{_CERTIFICATE_END}\n" for _, begin, body in parts if begin]


def merge_roots(*bundles: str) -> str:
    """All certificates of the bundles, each once, in order: old and new root while a rotation runs."""
    return "".join(dict.fromkeys(pem for bundle in bundles for pem in split_pem(bundle)))


def follow_roots(trusted: str, published: str) -> str:
    """What to trust once the mesh publishes ``published``.

    A bundle that only takes roots away is followed at once: a rotation withdraws a root after nobody needs it.
    One that brings a new root is trusted beside the old ones until the certificate is renewed.
    """
    new = merge_roots(published)
    brings = set(split_pem(new)) - set(split_pem(trusted))
    return merge_roots(new, trusted) if brings or not new else new


class CredentialStore:
    """The credentials directory: Envoy's SDS documents, and a note on how long the certificate lives."""

    def __init__(self, directory: str, output: str = "") -> None:
        """``output``: a further directory that gets plain copies (Istio's OUTPUT_CERTS), or ``""``."""
        self._default = Path(directory) / secrets.DEFAULT_FILE
        self._rootca = Path(directory) / secrets.ROOTCA_FILE
        self._note = Path(directory) / _NOTE_FILE
        self._output = Path(output) if output else None

    def load(self, identity: str) -> Credentials | None:
        """What an earlier run of this container left for the same identity, or None."""
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            certificate, key = secrets.read_default(self._default.read_text(encoding="utf-8"))
            roots, crl = secrets.read_rootca(self._rootca.read_text(encoding="utf-8"))
            found = Credentials(
                certificate=certificate,
                key=key,
                roots=roots,
                validity=Validity(float(note["not_before"]), float(note["not_after"])),
                identity=str(note["identity"]),
                crl=crl,
            )
            whole = note["version"] == secrets.version_of(certificate)
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return found if whole and found.identity == identity else None

    def store(self, credentials: Credentials) -> None:
        """Replace what is there. Roots first: a certificate is shown only by who trusts its issuer.

        :raises OSError: when the directory cannot be written (disk full, read-only).
        """
        default = secrets.render_default(credentials.certificate, credentials.key)
        for path, text in (
            (self._rootca, secrets.render_rootca(credentials.roots, credentials.crl)),
            (self._default, default),
        ):
            if read_text(path) != text:
                write_atomically(path, text)
        note = {
            "identity": credentials.identity,
            "not_before": credentials.validity.not_before,
            "not_after": credentials.validity.not_after,
            "version": secrets.version_of(credentials.certificate),
        }
        write_atomically(self._note, json.dumps(note))
        if self._output:
            write_atomically(self._output / "cert-chain.pem", credentials.certificate)
            write_atomically(self._output / "key.pem", credentials.key)
            write_atomically(self._output / "root-cert.pem", credentials.roots)
