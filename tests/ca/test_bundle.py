"""A plugged-in authority that cannot work is told apart from one that can, with a reason."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ca.making import NOW, YEAR, Made, files
from meltemi.ca import bundle
from meltemi.model.origin import Level

ROOT = Made("root")
MIDDLE = Made("middle", ROOT)
SIGNING = Made("signing", MIDDLE)


@pytest.mark.parametrize(
    "key", [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)]
)
def test_a_good_bundle_is_used(key: Any) -> None:
    """With intermediates, of either kind of key; the chain is everything below the root."""
    signing = Made("signing", MIDDLE, key)
    held, findings = bundle.examine(files(signing, MIDDLE, root=ROOT), NOW)
    assert held is not None and findings == ()
    assert held.chain == (signing.certificate, MIDDLE.certificate)


OTHER = Made("other")
BAD: dict[str, tuple[dict[str, bytes], str, str]] = {
    "no key": ({"ca-cert.pem": ROOT.pem}, "MLT0301", "ca-key.pem is missing"),
    "another key": (
        files(SIGNING, MIDDLE, root=ROOT, key=OTHER.key_pem),
        "MLT0302",
        "does not belong to its certificate",
    ),
    "garbage": ({"ca-cert.pem": b"\xff\x00", "ca-key.pem": b"x"}, "MLT0302", "cannot be read"),
    "not an authority": (
        files(Made("leaf", ROOT, ca=False), root=ROOT),
        "MLT0302",
        "may not sign others",
    ),
    "no intermediate": (files(SIGNING, root=ROOT), "MLT0305", "does not lead to a root"),
    "another root": (files(SIGNING, MIDDLE, root=OTHER), "MLT0305", "does not lead to a root"),
    "expired": (
        files(Made("old", ROOT, start=NOW - YEAR, end=NOW - 1), root=ROOT),
        "MLT0306",
        "expired on",
    ),
    "not yet valid": (files(Made("new", ROOT, start=NOW + 3600), root=ROOT), "MLT0306", "before"),
    "too deep": (
        files(Made("b", a := Made("a", ROOT, length=0)), a, root=ROOT),
        "MLT0308",
        "allows 0 authorities below it",
    ),
    "weak": (
        files(
            Made("weak", key=(k := rsa.generate_private_key(65537, 1024))), root=Made("w", key=k)
        ),
        "MLT0304",
        "1024 bits",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_bundle_is_refused_with_a_reason(case: str) -> None:
    """The finding has a stable code, says what is wrong, and what to do."""
    data, code, text = BAD[case]
    held, findings = bundle.examine(data, NOW)
    assert held is None
    found = next(f for f in findings if f.code == code)
    assert found.level is Level.ERROR and text in found.text and found.remedy


def test_what_ends_soon_is_a_warning() -> None:
    """It works, and says so."""
    held, findings = bundle.examine(files(Made("short", ROOT, end=NOW + 86400), root=ROOT), NOW)
    assert held is not None
    assert [f.code for f in findings] == ["MLT0307"]


def test_a_crl_is_used_only_if_it_is_the_signing_authoritys() -> None:
    """With a list of somebody else verifiers would refuse every certificate."""
    good = {**files(SIGNING, MIDDLE, root=ROOT), "ca-crl.pem": SIGNING.crl(7)}
    held, findings = bundle.examine(good, NOW)
    assert held is not None and findings == () and bundle.is_usable_crl(held, NOW)
    for text in (OTHER.crl(7), b"nonsense"):
        held, findings = bundle.examine({**good, "ca-crl.pem": text}, NOW)
        assert held is not None and not bundle.is_usable_crl(held, NOW)
        assert [f.code for f in findings] == ["MLT0309"]
    for late in (NOW - YEAR, NOW - 86400 + 60):
        # Verifiers would refuse everybody once it is out of date.
        held, findings = bundle.examine({**good, "ca-crl.pem": SIGNING.crl(now=late)}, NOW)
        assert [f.code for f in findings] == ["MLT0310"]
        assert held is not None and not bundle.is_usable_crl(held, NOW)
