"""``meltemi compile``: files in, Envoy's configuration out."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from google.protobuf.unknown_fields import UnknownFieldSet

from meltemi.adapters.envoy_process import find_envoy
from meltemi.commands.compile import compile_
from meltemi.commands.compiled import Compiler
from meltemi.envoy.json_form import from_json, message_of, to_json
from meltemi.registry.offline import complete, read_objects
from pki import make_authority

MESH = Path(__file__).parent / "mesh.yaml"


def run(*arguments: str, stdin: str | None = None, code: int = 0) -> Result:
    """The verb's result; fails when the exit code is another."""
    # Without standalone mode the verb's return value is the exit code that ``main`` uses.
    result = CliRunner().invoke(
        compile_, list(arguments), input=stdin, standalone_mode=False, catch_exceptions=True
    )
    given = result.return_value if isinstance(result.return_value, int) else result.exit_code
    assert given == code, (result.output, result.exception)
    return result


def entries(*arguments: str) -> list[dict[str, Any]]:
    """The proxies of ``-o json``."""
    found: list[dict[str, Any]] = json.loads(run(*arguments, "-o", "json").stdout)["proxies"]
    return found


def test_every_proxy_has_an_entry_with_all_its_parts() -> None:
    found = {entry["id"]: entry for entry in entries("-f", str(MESH))}
    assert sorted(found) == [
        "istio-ingressgateway-1.istio-system",
        "productpage-v1-1.default",
        "reviews-0.default",
        "reviews-1.default",
        "vm-1.default",
    ]
    entry = found["productpage-v1-1.default"]
    assert set(entry) == {
        "id",
        "workload",
        "listeners",
        "routes",
        "clusters",
        "endpoints",
        "secrets",
        "findings",
    }
    assert entry["workload"] == "productpage-v1"
    assert {listener["name"] for listener in entry["listeners"]} >= {
        "virtualOutbound",
        "virtualInbound",
        "0.0.0.0_9080",
    }
    assert "outbound|9080|v1|reviews.default.svc.cluster.local" in {
        cluster["name"] for cluster in entry["clusters"]
    }


def test_named_target_ports_and_replicas_become_endpoints() -> None:
    (entry,) = entries("-f", str(MESH), "--proxy", "productpage-v1.default")
    name = "outbound|9080||reviews.default.svc.cluster.local"
    (assignment,) = [e for e in entry["endpoints"] if e["clusterName"] == name]
    ports = [
        endpoint["endpoint"]["address"]["socketAddress"]["portValue"]
        for locality in assignment["endpoints"]
        for endpoint in locality["lbEndpoints"]
    ]
    assert ports == [8080, 8080]


def test_anys_carry_their_type() -> None:
    (entry,) = entries("-f", str(MESH), "--proxy", "vm-1.default")
    (inbound,) = [li for li in entry["listeners"] if li["name"] == "virtualInbound"]
    types = {f["typedConfig"]["@type"] for c in inbound["filterChains"] for f in c["filters"]}
    prefix = "type.googleapis.com/envoy.extensions.filters.network."
    assert prefix + "http_connection_manager.v3.HttpConnectionManager" in types


def _unknown(message: Any, where: str) -> list[str]:
    """Fields that the complete types still do not know."""
    found = [f"{where}: field {field.field_number}" for field in UnknownFieldSet(message)]
    for field, value in message.ListFields():
        if field.type != field.TYPE_MESSAGE:
            continue
        many = value.values() if field.message_type.GetOptions().map_entry else value
        members = list(many) if field.is_repeated else [value]
        for member in members:
            if not hasattr(member, "ListFields"):
                continue
            if field.message_type.full_name == "google.protobuf.Any":
                inner = message_of(member.type_url, member.value)
                found += _unknown(inner, member.type_url.rpartition("/")[2])
            else:
                found += _unknown(member, f"{where}.{field.name}")
    return found


def test_json_loses_nothing() -> None:
    compiler = Compiler(complete(read_objects([(MESH.read_text(), "mesh.yaml")])[0]))
    checked = 0
    for proxy in compiler.proxies():
        for type_url, resources in compiler.compile(proxy).resources.items():
            for resource in resources:
                message = message_of(type_url, resource.body)
                assert _unknown(message, resource.name) == []
                assert message_of(type_url, from_json(type_url, to_json(message))) == message
                checked += 1
    assert checked > 30


def test_short_output_names_the_lines() -> None:
    text = run("-f", str(MESH), "--proxy", "productpage-v1").stdout
    lines = MESH.read_text().splitlines()
    rule = lines.index("  - name: short") + 1
    (route,) = [line for line in text.splitlines() if "'short'" in line]
    assert f"mesh.yaml:{rule} (VirtualService/reviews.default spec.http[0]" in route
    service = lines.index("  name: reviews") + 1
    (listener,) = [line for line in text.splitlines() if "listener 0.0.0.0_9080" in line]
    assert f"mesh.yaml:{service} (Service/reviews.default)" in listener


def test_yaml_output_names_the_lines() -> None:
    text = run("-f", str(MESH), "--proxy", "productpage-v1", "-o", "yaml").stdout
    body = yaml.safe_load(text)
    clusters = {cluster["name"]: cluster for cluster in body["clusters"]}
    origins = clusters["outbound|9080|v1|reviews.default.svc.cluster.local"]["origins"]
    assert any("Service/reviews.default" in o and "mesh.yaml:" in o for o in origins)
    assert any("DestinationRule/reviews.default" in o and "mesh.yaml:" in o for o in origins)


def test_several_files_folders_and_standard_input(tmp_path: Path) -> None:
    documents = MESH.read_text().split("---\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "first.yaml").write_text("---\n".join(documents[:2]))
    (tmp_path / "third.yml").write_text("---\n".join(documents[2:4]))
    piped = "---\n".join(documents[4:])
    given = ["-f", str(tmp_path / "folder"), str(tmp_path / "third.yml"), "-f", "-"]
    found = json.loads(run(*given, "-o", "json", stdin=piped).stdout)["proxies"]
    assert {entry["id"] for entry in found} == {entry["id"] for entry in entries("-f", str(MESH))}


def _secret(tmp_path: Path) -> tuple[Path, bytes]:
    chain, key = make_authority().issue("shop.example.com")
    body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "shop", "namespace": "istio-system"},
        "stringData": {"tls.crt": chain.decode(), "tls.key": key.decode()},
    }
    path = tmp_path / "secret.yaml"
    path.write_text(yaml.safe_dump(body))
    return path, key


def test_secrets_appear_by_name_only(tmp_path: Path) -> None:
    path, key = _secret(tmp_path)
    gateway = "istio-ingressgateway.istio-system"
    arguments = ["-f", str(MESH), str(path), "--proxy", gateway]
    (entry,) = entries(*arguments)
    assert entry["secrets"] == ["kubernetes://shop"]
    line = key.decode().splitlines()[1]
    for output in ("json", "yaml", "short"):
        assert line not in run(*arguments, "-o", output).stdout


@pytest.mark.envoy
@pytest.mark.parametrize("proxy", ["productpage-v1.default", "reviews-0.default", "vm-1.default"])
def test_envoy_accepts_the_bootstrap_of_a_sidecar(proxy: str, tmp_path: Path) -> None:
    _accepted(run("-f", str(MESH), "--proxy", proxy, "-o", "bootstrap").stdout, tmp_path)


@pytest.mark.envoy
def test_envoy_accepts_the_bootstrap_of_a_gateway(tmp_path: Path) -> None:
    path, _ = _secret(tmp_path)
    proxy = "istio-ingressgateway.istio-system"
    text = run("-f", str(MESH), str(path), "--proxy", proxy, "-o", "bootstrap").stdout
    assert "kubernetes://shop" in text
    _accepted(text, tmp_path)


def _accepted(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bootstrap.json"
    path.write_text(text)
    command = [find_envoy(), "--mode", "validate", "-c", str(path), "--log-level", "error"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    # The proxy may crash after the verdict when it cleans up its statistics scope: the text counts.
    assert "OK" in done.stdout + done.stderr, done.stdout + done.stderr


def test_a_bootstrap_is_for_one_proxy() -> None:
    result = run("-f", str(MESH), "-o", "bootstrap", code=1)
    assert "choose with --proxy" in str(result.exception)


def test_an_unknown_proxy_is_answered_with_those_there_are() -> None:
    result = run("-f", str(MESH), "--proxy", "nobody.default", code=1)
    assert "reviews.default" in str(result.exception)


def test_wrong_objects_are_refused_with_file_line_field_and_remedy(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(MESH.read_text().replace("timeout: 0.5s", "timeuot: 0.5s"))
    line = path.read_text().splitlines().index("    timeuot: 0.5s") + 1
    result = run("-f", str(path), code=1)
    assert result.stdout == ""
    assert f"wrong.yaml:{line}" in result.stderr
    assert "timeout" in result.stderr
    assert "virtualOutbound" in run("-f", str(path), "--keep-going", code=1).stdout


def test_files_without_workloads_say_so(tmp_path: Path) -> None:
    path = tmp_path / "only.yaml"
    path.write_text(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n"
    )
    assert "no Deployment" in str(run("-f", str(path), code=1).exception)


def test_the_mesh_configuration_of_the_files_counts(tmp_path: Path) -> None:
    path = tmp_path / "istio.yaml"
    path.write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\n"
        "data:\n  mesh: |\n    outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n"
    )
    text = run("-f", str(MESH), str(path), "--proxy", "productpage-v1").stdout
    assert "filter TCP to PassthroughCluster" not in text.partition("virtualInbound")[0]


def test_conflicts_are_told_at_both_objects_and_stop_nothing(tmp_path: Path) -> None:
    path = tmp_path / "second.yaml"
    path.write_text(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: again}\n"
        "spec:\n  hosts: [reviews]\n  http: [{route: [{destination: {host: nowhere}}]}]\n"
    )
    result = run("-f", str(MESH), str(path), "--proxy", "productpage-v1")
    assert "listener virtualOutbound" in result.stdout
    told = [line for line in result.stderr.splitlines() if "[IST0109]" in line]
    assert len(told) == 2
    assert any(f"{path}:5 (VirtualService/again.default spec.hosts[0])" in line for line in told)
    assert any("VirtualService/reviews.default spec.hosts[0]" in line for line in told)
    assert f"[IST0101] {path}:6" in result.stderr


def test_a_bootstrap_has_the_patches_that_the_agent_would_ask_for(tmp_path: Path) -> None:
    """Only where the agent asks; elsewhere the patch's line is named."""
    path = tmp_path / "patch.yaml"
    path.write_text(
        "apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\n"
        "metadata: {name: start, namespace: istio-system}\nspec:\n  configPatches:\n"
        "  - applyTo: BOOTSTRAP\n    patch: {operation: MERGE, value: {stats_flush_interval: 7s}}\n"
    )
    files = ("-f", str(MESH), str(path))
    (entry,) = entries(*files, "--proxy", "reviews-0.default")
    assert [finding["code"] for finding in entry["findings"]] == ["MLT0110"]
    asks = tmp_path / "mesh-config.yaml"
    asks.write_text("defaultConfig: {proxyMetadata: {BOOTSTRAP_XDS_AGENT: 'true'}}\n")
    more = ("--mesh-config", str(asks), "--proxy", "reviews-0.default", "-o", "bootstrap")
    made = json.loads(run(*files, *more).stdout)
    assert made["statsFlushInterval"] == "7s"
    assert made["node"]["metadata"]["BOOTSTRAP_XDS_AGENT"] == "true"
