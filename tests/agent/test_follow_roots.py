"""What an agent trusts when the mesh publishes other roots."""

from __future__ import annotations

from meltemi.adapters.agent_files import follow_roots, split_pem


def pem(name: str) -> str:
    return f"-----BEGIN CERTIFICATE-----\n{name}\n-----END CERTIFICATE-----\n"


A, B = pem("a"), pem("b")


def test_a_new_root_is_trusted_beside_the_old_one() -> None:
    """Peers still show certificates of the old one."""
    assert split_pem(follow_roots(A, B)) == [B, A]
    assert split_pem(follow_roots(A, A + B)) == [A, B]


def test_a_withdrawn_root_is_no_longer_trusted() -> None:
    """At once, without waiting for a new certificate."""
    assert split_pem(follow_roots(A + B, B)) == [B]


def test_a_request_to_renew_and_an_empty_bundle_change_nothing() -> None:
    """A comment before the certificates is no root; an empty file is a mistake of somebody's."""
    assert split_pem(follow_roots(A, f"# renewal 2\n{A}")) == [A]
    assert split_pem(follow_roots(A, "")) == [A]
