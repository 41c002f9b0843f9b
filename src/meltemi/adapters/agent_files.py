"""Files that the agent gives to Envoy: credentials, SDS documents, the bootstrap.

In: texts. Out: files. Promises that a reader sees either the old or the new content, never a part; that
private keys and tokens are readable by their owner only; and that a certificate, its key and its roots change
together (one symlink is swapped by rename).
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from meltemi.agent.certificates import Validity
from meltemi.agent.secrets import (
    CURRENT,
    DEFAULT_FILE,
    ROOTCA_FILE,
    SecretText,
    render_default,
    render_rootca,
)

_CERTIFICATE_BEGIN = "-----BEGIN CERTIFICATE-----"
_CERTIFICATE_END = "-----END CERTIFICATE-----"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A workload's certificate chain (leaf first, no root), its key, and the roots it trusts; all PEM."""

    certificate: str
    key: SecretText
    roots: str
    validity: Validity
    identity: str


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
    """The credentials directory: ``current -> <generation>/{cert.pem,key.pem,root.pem}`` and SDS files."""

    def __init__(self, directory: str, output: str = "") -> None:
        """``output``: a further directory that gets plain copies (Istio's OUTPUT_CERTS), or ``""``."""
        self.directory = Path(directory)
        self.output = Path(output) if output else None

    def load(self, identity: str) -> Credentials | None:
        """What an earlier run of this container left for the same identity, or None."""
        current = self.directory / CURRENT
        try:
            note = json.loads((current / "validity.json").read_text(encoding="utf-8"))
            found = Credentials(
                certificate=(current / "cert.pem").read_text(encoding="utf-8"),
                key=SecretText((current / "key.pem").read_text(encoding="utf-8")),
                roots=(current / "root.pem").read_text(encoding="utf-8"),
                validity=Validity(float(note["not_before"]), float(note["not_after"])),
                identity=str(note["identity"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if found.identity == identity else None

    def store(self, credentials: Credentials) -> None:
        """Write a new generation, make it the current one, and remove all others.

        :raises OSError: when the directory cannot be written (disk full, read-only).
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        name = self._next_generation()
        generation = self.directory / name
        shutil.rmtree(generation, ignore_errors=True)
        generation.mkdir(mode=0o700)
        write_atomically(generation / "cert.pem", credentials.certificate)
        write_atomically(generation / "key.pem", credentials.key)
        write_atomically(generation / "root.pem", credentials.roots)
        note = {
            "not_before": credentials.validity.not_before,
            "not_after": credentials.validity.not_after,
            "identity": credentials.identity,
        }
        write_atomically(generation / "validity.json", json.dumps(note))
        link = self.directory / f".{CURRENT}.new"
        link.unlink(missing_ok=True)
        link.symlink_to(name)
        link.replace(self.directory / CURRENT)
        self._write_documents()
        for old in self._generations():
            if old.name != name:
                shutil.rmtree(old, ignore_errors=True)
        if self.output:
            self._copy_out(credentials)

    def _write_documents(self) -> None:
        documents = {
            DEFAULT_FILE: render_default(str(self.directory)),
            ROOTCA_FILE: render_rootca(str(self.directory)),
        }
        for file, text in documents.items():
            path = self.directory / file
            if read_text(path) != text:
                write_atomically(path, text)

    def _generations(self) -> list[Path]:
        return [p for p in self.directory.glob("generation-*") if p.is_dir()]

    def _next_generation(self) -> str:
        numbers = [int(p.name.rpartition("-")[2]) for p in self._generations()]
        return f"generation-{max(numbers, default=0) + 1}"

    def _copy_out(self, credentials: Credentials) -> None:
        assert self.output is not None
        write_atomically(self.output / "cert-chain.pem", credentials.certificate)
        write_atomically(self.output / "key.pem", credentials.key)
        write_atomically(self.output / "root-cert.pem", credentials.roots)
