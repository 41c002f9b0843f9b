"""Keys and certificates of a cluster."""

from __future__ import annotations

import datetime
import ssl
import stat
import time
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.x509.oid import NameOID

from localkube.apiserver import pki

DAY_S = 24 * 3600


def test_every_file_is_private(tmp_path: Path) -> None:
    """Files are 0600 in a 0700 directory, whatever the umask."""
    pki.ensure_pki(tmp_path / "pki")
    assert stat.S_IMODE((tmp_path / "pki").stat().st_mode) == 0o700
    modes = {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "pki").iterdir()}
    assert modes == {0o600}


def test_identities_in_certificates(tmp_path: Path) -> None:
    """The admin is a master, the node is system:node:<name> in system:nodes."""
    made = pki.ensure_pki(tmp_path / "pki", node_name="n1")

    def subject(pair: pki.KeyPair) -> tuple[str, list[str]]:
        cert = x509.load_pem_x509_certificate(pair.cert_pem())
        names = cert.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        groups = cert.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        return str(names[0].value), [str(group.value) for group in groups]

    assert subject(made.admin) == ("kubernetes-admin", ["system:masters"])
    assert subject(made.node) == ("system:node:n1", ["system:nodes"])
    assert subject(made.controller)[0] == "system:kube-controller-manager"


def test_server_answers_to_all_its_names(tmp_path: Path) -> None:
    """A client verifies the server as 127.0.0.1, as its Service and as the node's address."""
    made = pki.ensure_pki(tmp_path / "pki", extra_names=["api.example"])
    cert = x509.load_pem_x509_certificate(made.server.cert_pem())
    extension = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    names = {str(name.value) for name in extension.value}
    assert {
        "127.0.0.1",
        "10.96.0.1",
        "172.30.0.1",
        "kubernetes.default.svc",
        "api.example",
    } <= names


def test_good_keys_are_kept_and_old_ones_renewed(tmp_path: Path) -> None:
    """A second start changes nothing; a start near the end renews leaves, not the authority."""
    first = pki.ensure_pki(tmp_path / "pki")
    before = {f.name: f.read_bytes() for f in (tmp_path / "pki").iterdir()}
    pki.ensure_pki(tmp_path / "pki")
    assert before == {f.name: f.read_bytes() for f in (tmp_path / "pki").iterdir()}
    later = time.time() + 300 * DAY_S
    pki.ensure_pki(tmp_path / "pki", now=later)
    assert first.ca.cert.read_bytes() == before["ca.crt"]
    assert first.sa_key.read_bytes() == before["sa.key"]
    renewed = x509.load_pem_x509_certificate(first.server.cert_pem())
    end = datetime.datetime.fromtimestamp(later + 360 * DAY_S, datetime.UTC)
    assert renewed.not_valid_after_utc > end


def test_new_server_name_renews_the_certificate(tmp_path: Path) -> None:
    """A name that the certificate lacks is reason enough for a new one."""
    made = pki.ensure_pki(tmp_path / "pki")
    before = made.server.cert_pem()
    pki.ensure_pki(tmp_path / "pki", extra_names=["other.example"])
    assert made.server.cert_pem() != before


def test_damaged_leaf_is_replaced_and_damaged_authority_reported(tmp_path: Path) -> None:
    """A broken leaf mends itself; a broken CA key is the user's to decide."""
    made = pki.ensure_pki(tmp_path / "pki")
    made.admin.cert.write_bytes(b"rubbish")
    pki.ensure_pki(tmp_path / "pki")
    x509.load_pem_x509_certificate(made.admin.cert_pem())
    made.ca.key.write_bytes(b"rubbish")
    with pytest.raises(pki.PkiError, match=r"ca\.key: cannot read the private key"):
        pki.ensure_pki(tmp_path / "pki")


def test_kubeconfig_is_complete(tmp_path: Path) -> None:
    """A kubeconfig holds its credentials inline and is private."""
    made = pki.ensure_pki(tmp_path / "pki")
    path = tmp_path / "kubeconfig"
    pki.write_kubeconfig(path, made, made.admin, server="https://127.0.0.1:6443", cluster="c1")
    config = yaml.safe_load(path.read_text())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert config["current-context"] == "c1"
    assert config["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:6443"
    assert set(config["users"][0]["user"]) == {"client-certificate-data", "client-key-data"}


def test_server_context_asks_for_but_does_not_demand_a_certificate(tmp_path: Path) -> None:
    """Tokens and anonymous requests need no client certificate."""
    context = pki.server_ssl_context(pki.ensure_pki(tmp_path / "pki"))
    assert context.verify_mode is ssl.CERT_OPTIONAL
