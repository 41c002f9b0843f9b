"""Make tokens for trying out RequestAuthentication and AuthorizationPolicy.

    python samples/jwt-server/gen-jwt.py                                  # a token that lasts an hour
    python samples/jwt-server/gen-jwt.py --expire 60 --claims foo:bar --listclaims groups a b
    python samples/jwt-server/gen-jwt.py --key my.pem --jwks              # the key set of another key

``demo-key.pem`` is public: everybody has it. Never accept its tokens outside of a trial.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import jwt
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

FOLDER = Path(__file__).parent
ISSUER = "testing@jwt.example.com"


def key_id(key: rsa.RSAPrivateKey) -> str:
    """A name that belongs to the key: the first digits of its digest."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(
        key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return digest.finalize().hex()[:16]


def key_set(key: rsa.RSAPrivateKey) -> str:
    """The JSON Web Key Set that verifies the key's tokens."""
    public = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    public.pop("key_ops", None)
    entry = {"kid": key_id(key), "alg": "RS256", "use": "sig", **public}
    return json.dumps({"keys": [entry]}, indent=2)


def token(key: rsa.RSAPrivateKey, claims: dict[str, object]) -> str:
    """A signed token with these claims."""
    return jwt.encode(claims, key, algorithm="RS256", headers={"kid": key_id(key)})


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="make a signed token")
    parser.add_argument("--key", type=Path, default=FOLDER / "demo-key.pem", help="RSA key in PEM")
    parser.add_argument("--iss", default=ISSUER, help="issuer")
    parser.add_argument("--sub", default=ISSUER, help="subject")
    parser.add_argument("--aud", help="audiences, with commas")
    parser.add_argument("--expire", type=int, default=3600, help="seconds from now")
    parser.add_argument(
        "--claims", action="append", default=[], help="name:value, several with commas"
    )
    parser.add_argument(
        "--listclaims", action="append", nargs="+", default=[], help="name value ..."
    )
    parser.add_argument("--jwks", action="store_true", help="print the key set instead")
    return parser.parse_args()


def main() -> None:
    """Print the token, or the key set."""
    flags = parse()
    key = serialization.load_pem_private_key(flags.key.read_bytes(), password=None)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise SystemExit(f"{flags.key} is no RSA key")
    if flags.jwks:
        print(key_set(key))
        return
    now = int(time.time())
    claims: dict[str, object] = {"iss": flags.iss, "sub": flags.sub, "iat": now}
    claims["exp"] = now + flags.expire
    if flags.aud:
        audiences = flags.aud.split(",")
        claims["aud"] = audiences if len(audiences) > 1 else audiences[0]
    for text in flags.claims:
        claims.update(pair.split(":", 1) for pair in text.split(","))
    for name, *values in flags.listclaims:
        claims[name] = values
    print(token(key, claims))


if __name__ == "__main__":
    main()
