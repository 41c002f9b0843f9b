"""The small curl, nc and load generator, against the samples' servers; curl beside the real one where there is one."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.tasks import code_counts
from meltemi_samples.programs.curl_flags import expand, parse
from meltemi_samples.programs.curl_wire import Failure
from pki import make_authority
from samples.programs import free_port, run_curl, run_fortio, run_process, running

HOST = "httpbin.example.com"


@pytest.fixture(scope="module")
def plain() -> Iterator[str]:
    port = free_port()
    with running("programs.httpbin", str(port), port=port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """(port, root of its certificate) of an HTTPS server for HOST."""
    folder, port = tmp_path_factory.mktemp("tls"), free_port()
    authority = make_authority()
    certificate, key = authority.issue(HOST)
    (folder / "tls.crt").write_bytes(certificate)
    (folder / "tls.key").write_bytes(key)
    (folder / "ca.crt").write_bytes(authority.root)
    files = {"HTTPS_CERT_FILE": str(folder / "tls.crt"), "HTTPS_KEY_FILE": str(folder / "tls.key")}
    with running("programs.httpbin", str(port), port=port, **files):
        yield port, folder / "ca.crt"


def test_flags_in_the_ways_people_write_them() -> None:
    flags = parse(["-sSI", "-HA: 1", "-H", "B: 2", "host/x", "-w%{http_code}", "-o", "/dev/null"])
    assert (flags.silent, flags.show_error, flags.head_only) == (True, True, True)
    assert flags.headers == ["A: 1", "B: 2"]
    assert flags.method == "HEAD"
    assert flags.outputs == ["/dev/null"]
    assert parse(["-d", "a=1", "--data-urlencode", "b=x y", "u"]).body == b"a=1&b=x%20y"
    assert parse(["-G", "-d", "a=1", "u"]).urls == ["u?a=1"]
    assert parse(["--json", "{}", "u"]).content_type == "application/json"
    assert parse(["--resolve", "h:443:1.2.3.4", "u"]).place("h", 443) == ("1.2.3.4", 443)
    assert parse(["--connect-to", "h:443:g:15443", "u"]).place("h", 443) == ("g", 15443)


@pytest.mark.parametrize("words", [["--nonsense", "u"], [], ["-m", "x", "u"]])
def test_wrong_flags(words: list[str]) -> None:
    with pytest.raises(Failure) as found:
        parse(words)
    assert found.value.code == 2


def test_url_patterns() -> None:
    assert expand("u/[1-3]") == ["u/1", "u/2", "u/3"]
    assert expand("u/[08-10]") == ["u/08", "u/09", "u/10"]
    assert expand("u/{a,b}/[1-2]") == ["u/a/1", "u/a/2", "u/b/1", "u/b/2"]


@pytest.mark.parametrize(
    "words",
    [
        ["-s", "-o", "/dev/null", "-w", "%{http_code} %{num_redirects}\n", "-L", "{}/redirect/2"],
        ["-sI", "-X", "DELETE", "{}/anything"],
        ["-s", "-o", "/dev/null", "-w", "%{http_code}:%{size_download}:%{content_type}", "{}/html"],
        ["-sf", "{}/status/503"],
        ["-sS", "--max-time", "0.3", "{}/delay/5"],
        ["-s", "-u", "a:b", "{}/basic-auth/a/b"],
        ["-s", "-w", "%{redirect_url}", "{}/redirect/1"],
        ["-s", "{}/status/[201-203]", "-w", "%{http_code},"],
        ["-s", "http://127.0.0.1:1/"],
        ["-s", "http://nowhere.invalid/"],
        ["-s", "nonsense://localhost/"],
        ["-s", "-d", "a=1", "-H", "Accept:", "-H", "User-Agent: me", "{}/post"],
    ],
)
def test_curl_does_what_curl_does(plain: str, words: list[str]) -> None:
    """Same output and exit code as the machine's curl; without one, the exit code and a sign of life."""
    words = [word.replace("{}", plain) for word in words]
    ours = run_curl(*words)
    real = shutil.which("curl")
    if real is None:
        assert "Traceback" not in ours.stderr
        return
    theirs = subprocess.run([real, *words], capture_output=True, text=True, timeout=60)
    assert ours.returncode == theirs.returncode
    assert _without_time(ours.stdout) == _without_time(theirs.stdout)


def _without_time(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.lower().startswith("date:"))


def test_curl_over_tls(secure: tuple[int, Path]) -> None:
    port, root = secure
    url = f"https://{HOST}:{port}/status/418"
    place = ["--resolve", f"{HOST}:{port}:127.0.0.1"]
    good = run_curl("-sS", "--cacert", str(root), *place, url, "-w", " %{http_code}")
    assert good.stdout == "I'm a teapot! 418"
    assert run_curl("-sk", *place, url).stdout == "I'm a teapot!"
    bad = run_curl("-sS", *place, url, "-w", "%{http_code}")
    assert (bad.returncode, bad.stdout) == (60, "000")
    assert "curl: (60)" in bad.stderr
    verbose = run_curl("-v", "--cacert", str(root), *place, url)
    assert "SSL connection using TLSv1.3" in verbose.stderr
    assert "< HTTP/1.1 418" in verbose.stderr


def test_load_reports_as_fortio(plain: str, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    line = f"load -c 2 -qps 0 -n 20 -loglevel Warning -json {file} {plain}/status/200:1,503:0"
    done = run_fortio(*line.split())
    assert done.returncode == 0, done.stderr
    assert "Code 200 : 20 (100.0 %)" in done.stdout
    assert "All done 20 calls" in done.stdout
    assert "Fortio running" not in done.stdout
    assert json.loads(file.read_text())["RetCodes"] == {"200": 20}
    mixed = code_counts(run_fortio(*f"load -c 4 -qps 0 -n 200 {plain}/unstable".split()).stdout)
    assert set(mixed) == {200, 500}
    assert sum(mixed.values()) == 200


def test_load_keeps_its_rate_and_its_time(plain: str) -> None:
    done = run_fortio(*f"load -c 1 -qps 20 -t 500ms {plain}/get".split())
    assert code_counts(done.stdout) == {200: 10}


def test_load_of_nobody_fails() -> None:
    done = run_fortio(
        *["load", "-c", "1", "-qps", "0", "-n", "3", "-loglevel", "Error", "http://127.0.0.1:1/"],
    )
    assert done.returncode == 1
    assert code_counts(done.stdout) == {-1: 3}


def test_fortio_curl(plain: str) -> None:
    done = run_fortio("curl", "-quiet", f"{plain}/get")
    assert done.returncode == 0
    assert done.stdout.startswith("HTTP/1.1 200 OK")
    assert run_fortio("curl", f"{plain}/status/503").returncode == 1


def test_netcat_and_tcp_echo() -> None:
    port = free_port()
    with running("programs.tcp_echo", str(port), "one", port=port):
        assert (
            run_process("netcat", "127.0.0.1", str(port), stdin="a\nb\n").stdout == "one a\none b\n"
        )
        assert run_process("netcat", "-z", "-v", "127.0.0.1", str(port)).returncode == 0
        url = f"telnet://127.0.0.1:{port}"
        assert run_process("curl", "-s", url, stdin="hi\n").stdout == "one hi\n"
    assert run_process("netcat", "127.0.0.1", str(port)).returncode == 1


def test_helloworld_health_and_websockets() -> None:
    port = free_port()
    with running("programs.helloworld", str(port), port=port, SERVICE_VERSION="v2", HOSTNAME="pod"):
        hello = run_curl("-s", f"http://127.0.0.1:{port}/hello").stdout
        assert hello == "Hello version: v2, instance: pod\n"
    port = free_port()
    with running("programs.health", str(port), port=port):
        url = f"http://127.0.0.1:{port}"
        code = ["-s", "-o", "/dev/null", "-w", "%{http_code}"]
        assert run_curl(*code, f"{url}/foo").stdout == "200"
        run_curl("-s", "-X", "POST", f"{url}/fail")
        assert run_curl(*code, f"{url}/foo").stdout == "500"
    port = free_port()
    with running("programs.websockets", str(port), port=port):
        assert "<script>" in run_curl("-s", f"http://127.0.0.1:{port}/").stdout


def test_grpc_echo() -> None:
    port = free_port()
    with running("programs.grpc_echo", "server", str(port), port=port, SERVICE_VERSION="v2"):
        line = ["call", f"127.0.0.1:{port}", "ahoy", "--count", "2", "--metadata", "x-who=me"]
        done = run_process("grpc_echo", *line)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("ServiceVersion=v2") == 2
        assert done.stdout.count("Metadata=x-who:me") == 2
        assert done.stdout.endswith("Echo=ahoy\n")
        failed = run_process("grpc_echo", "call", f"127.0.0.1:{port}", "fail")
        assert (failed.returncode, failed.stderr) == (1, "UNAVAILABLE: asked to fail\n")
