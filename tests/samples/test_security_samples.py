"""The samples of the security tasks: the authorizer over both protocols, the key server, the maker of authorities."""

from __future__ import annotations

import http.client
import json
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import grpc
import jwt
import pytest
from cryptography import x509
from envoy.service.auth.v3 import external_auth_pb2

from envoy_rig import free_port
from meltemi.ca import bundle

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
TOKENS = SAMPLES / "jwt-server"
ISSUER = "testing@jwt.example.com"
DEADLINE_S = 30.0


@contextmanager
def program(name: str, first: str, second: str) -> Iterator[tuple[int, int]]:
    """A sample's program with its two ports."""
    ports = free_port(), free_port()
    flags = [first, str(ports[0]), second, str(ports[1])]
    process = subprocess.Popen([sys.executable, "-m", f"meltemi_samples.programs.{name}", *flags])
    try:
        yield ports
    finally:
        process.terminate()
        assert process.wait(DEADLINE_S) == 0


def get(port: int, headers: dict[str, str], tls: bool = False) -> http.client.HTTPResponse:
    """A request, repeated until the server is there."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        context = ssl._create_unverified_context() if tls else None
        connection = (
            http.client.HTTPSConnection("127.0.0.1", port, context=context)
            if context
            else http.client.HTTPConnection("127.0.0.1", port)
        )
        try:
            with closing(connection):
                connection.request("GET", "/any/path?x=1", headers=headers)
                answer = connection.getresponse()
                answer.text = answer.read().decode()  # type: ignore[attr-defined]
                return answer
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_the_authorizer_answers_over_both_protocols() -> None:
    """The header decides; verdicts carry what was asked; of TCP connections one account's pass."""
    with program("ext_authz", "--http", "--grpc") as (web, rpc):
        refused, allowed = get(web, {}), get(web, {"x-ext-authz": "allow"})
        assert (refused.status, allowed.status) == (403, 200)
        assert allowed.getheader("x-ext-authz-check-result") == "allowed"
        assert (
            refused.getheader("x-ext-authz-check-received") == f"GET 127.0.0.1:{web}/any/path?x=1"
        )
        with grpc.insecure_channel(f"127.0.0.1:{rpc}") as channel:
            check = channel.unary_unary(
                "/envoy.service.auth.v3.Authorization/Check",
                request_serializer=external_auth_pb2.CheckRequest.SerializeToString,
                response_deserializer=external_auth_pb2.CheckResponse.FromString,
            )

            def ask(principal: str = "", **headers: str) -> external_auth_pb2.CheckResponse:
                question = external_auth_pb2.CheckRequest()
                question.attributes.source.principal = principal
                if not principal:
                    question.attributes.request.http.method = "GET"
                    named = {name.replace("_", "-"): value for name, value in headers.items()}
                    question.attributes.request.http.headers.update(named)
                return check(question, timeout=DEADLINE_S, wait_for_ready=True)

            assert ask(x_ext_authz="allow").status.code == 0
            denied = ask(x_ext_authz="deny")
            assert (denied.status.code, denied.denied_response.status.code) == (7, 403)
            assert ask("spiffe://cluster.local/ns/foo/sa/a").status.code == 0
            assert ask("spiffe://cluster.local/ns/foo/sa/b").status.code == 7


def test_the_key_server_verifies_the_samples_tokens() -> None:
    """Over HTTP and HTTPS; the tokens have the claims that the documentation names."""
    with program("jwt_server", "--http", "--https") as (web, tls):
        plain, encrypted = get(web, {}), get(tls, {}, tls=True)
        assert plain.text == encrypted.text == (TOKENS / "jwks.json").read_text()  # type: ignore[attr-defined]
    keys = jwt.PyJWKSet.from_json(plain.text)  # type: ignore[attr-defined]
    for name, claims in (
        ("demo.jwt", {"foo": "bar"}),
        ("groups-scope.jwt", {"groups": ["group1", "group2"], "scope": ["scope1", "scope2"]}),
    ):
        text = (TOKENS / name).read_text().strip()
        key = keys[jwt.get_unverified_header(text)["kid"]]
        found = jwt.decode(text, key, algorithms=["RS256"])
        assert claims.items() <= found.items()
        assert found["iss"] == found["sub"] == ISSUER


def test_tokens_are_made_as_wanted() -> None:
    """The tool's flags; its key set is the sample's."""
    tool = [sys.executable, str(TOKENS / "gen-jwt.py")]
    flags = ["--expire", "60", "--aud", "a,b", "--claims", "x:1,y:2", "--listclaims", "groups", "g"]
    made = subprocess.run([*tool, *flags], capture_output=True, text=True, check=True).stdout
    keys = json.loads((TOKENS / "jwks.json").read_text())
    key = jwt.PyJWK.from_dict(keys["keys"][0])
    found = jwt.decode(made.strip(), key, algorithms=["RS256"], audience="b")
    assert (found["x"], found["y"], found["groups"]) == ("1", "2", ["g"])
    assert found["exp"] - found["iat"] == 60
    shown = subprocess.run([*tool, "--jwks"], capture_output=True, text=True, check=True).stdout
    assert json.loads(shown) == keys


@pytest.mark.parametrize("clusters", [["cluster1"], ["east", "west"]])
def test_made_authorities_can_be_plugged_in(tmp_path: Path, clusters: list[str]) -> None:
    """Every cluster's folder passes the mesh's own examination; all share the root; keys are private."""
    tool = [sys.executable, str(SAMPLES / "certs" / "make_certs.py"), str(tmp_path)]
    subprocess.run(
        [*tool, "--clusters", *clusters, "--revoke", "1f"], check=True, capture_output=True
    )
    roots = set()
    for cluster in clusters:
        data = {path.name: path.read_bytes() for path in (tmp_path / cluster).iterdir()}
        held, findings = bundle.examine(data, time.time())
        assert held is not None
        assert findings == ()
        assert bundle.is_usable_crl(held, time.time())
        roots.add(held.roots)
        assert (tmp_path / cluster / "ca-key.pem").stat().st_mode & 0o077 == 0
    assert roots == {(tmp_path / "root-cert.pem").read_text()}
    listed = x509.load_pem_x509_crl((tmp_path / clusters[0] / "ca-crl.pem").read_bytes())
    assert listed.get_revoked_certificate_by_serial_number(0x1F) is not None
    before = (tmp_path / clusters[0] / "ca-cert.pem").read_bytes()
    subprocess.run([*tool, "--clusters", *clusters, "more"], check=True, capture_output=True)
    assert (tmp_path / clusters[0] / "ca-cert.pem").read_bytes() == before
