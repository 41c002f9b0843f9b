"""What is wrong with a Secret, before a proxy sees it."""

from __future__ import annotations

from dataclasses import replace

from meltemi.push.secrets import SecretData, pair_problem, roots_problem, secret_from_data
from pki import make_authority

AUTHORITY = make_authority()
CHAIN, KEY = AUTHORITY.issue("a.example.com")
GOOD = SecretData(CHAIN, KEY, AUTHORITY.root, AUTHORITY.revoke())


def test_good_ones_have_no_problem() -> None:
    assert pair_problem(GOOD) == ""
    assert roots_problem(GOOD) == ""
    assert pair_problem(SecretData(CHAIN + AUTHORITY.root, KEY)) == ""


def test_pairs() -> None:
    other = AUTHORITY.issue("a.example.com", with_rsa=True)[1]
    for changes, said in (
        ({"chain": b""}, "lacks"),
        ({"key": b""}, "lacks"),
        ({"chain": b"no certificate"}, "not PEM"),
        ({"chain": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}, "not PEM"),
        ({"key": b"no key"}, "PEM key"),
        ({"key": other}, "does not belong"),
    ):
        assert said in pair_problem(replace(GOOD, **changes))


def test_roots() -> None:
    for changes, said in (
        ({"ca": b""}, "lacks"),
        ({"ca": b"nothing"}, "not PEM"),
        ({"crl": b"nothing"}, "revocation"),
    ):
        assert said in roots_problem(replace(GOOD, **changes))


def test_names_of_parts() -> None:
    both = {"tls.crt": b"1", "cert": b"2", "key": b"3", "cacert": b"4", "crl": b"5"}
    assert secret_from_data(both) == SecretData(b"1", b"3", b"4", b"5")
    assert "redacted" in repr(GOOD)
    assert "PRIVATE" not in repr(GOOD)
