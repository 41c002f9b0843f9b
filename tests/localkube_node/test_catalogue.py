"""Image references and catalogue files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from localkube.node.catalogue import Catalogue, decode_catalogue, derive_full_reference
from localkube.node.hostview import DEFAULT_CAPABILITIES, resolve_capabilities, resolve_command


@pytest.mark.parametrize(
    ("image", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("istio/proxyv2:1.2", "docker.io/istio/proxyv2:1.2"),
        ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
        ("ghcr.io/x/y@sha256:ab", "ghcr.io/x/y:sha256:ab"),
    ],
)
def test_full_references(image: str, full: str) -> None:
    assert derive_full_reference(image) == full


def catalogue(tmp_path: Path, text: str, own: str = "") -> Catalogue:
    (tmp_path / "given.yaml").write_text(text)
    if own:
        (tmp_path / "own.yaml").write_text(own)
    return Catalogue([tmp_path / "given.yaml"], tmp_path / "own.yaml")


@pytest.mark.parametrize(
    ("pattern", "image", "found"),
    [
        ("docker.io/meltemi/proxy:*", "meltemi/proxy:1", True),
        ("docker.io/meltemi/*", "docker.io/meltemi/a/b:1", True),
        ("*/examples-bookinfo-*", "docker.io/istio/examples-bookinfo-details-v1:1.20", True),
        ("shop/cart", "shop/cart:9", True),
        ("shop/cart:1", "shop/cart:2", False),
        ("shop/cart:*", "shop/cart@sha256:00", True),
        ("busybox:*", "docker.io/library/busybox", True),
        ("*/fortio/fortio*", "fortio/fortio:latest_release", True),
    ],
)
def test_patterns(tmp_path: Path, pattern: str, image: str, found: bool) -> None:
    text = f'images: [{{image: "{pattern}", command: ["mine"]}}]'
    entry = catalogue(tmp_path, text).find(image)
    assert (entry is not None and entry.command == ("mine",)) is found


def test_places_are_filled_in(tmp_path: Path) -> None:
    text = 'images: [{image: a, command: ["{python}", "{dir}/x", "{bin}/y"], env: {A: "{dir}"}}]'
    entry = catalogue(tmp_path, text).find("a")
    assert entry is not None
    assert entry.command == (
        sys.executable,
        f"{tmp_path.resolve()}/x",
        f"{Path(sys.executable).parent}/y",
    )
    assert entry.env == {"A": str(tmp_path.resolve())}


def test_the_users_own_file_wins(tmp_path: Path) -> None:
    both = catalogue(
        tmp_path, "images: [{image: a, command: [given]}]", "images: [{image: a, command: [own]}]"
    )
    entry = both.find("a:1")
    assert entry is not None
    assert entry.command == ("own",)


def test_a_wrong_entry_is_named_and_the_others_stay(tmp_path: Path) -> None:
    text = """images:
- {image: a, comand: [x]}
- {image: b, command: "not a list"}
- {image: c, capabilities: [FLY]}
- {image: d, command: [ok]}
- 7
"""
    images, findings = decode_catalogue(text, tmp_path / "f.yaml")
    assert [image.pattern for image in images] == ["d"]
    assert "images[0]: unknown field 'comand'" in findings[0]
    assert "images[1]: 'command' must be a list of strings" in findings[1]
    assert "images[2]: 'capabilities' has the unknown name 'FLY'" in findings[2]
    assert "images[4]: must be a mapping" in findings[3]


@pytest.mark.parametrize("text", ["a: [", "images: 5", "[]", "nothing: here"])
def test_a_file_that_is_no_catalogue_is_a_finding(tmp_path: Path, text: str) -> None:
    files = catalogue(tmp_path, text)
    assert files.find("busybox") is not None, "the built-in images stay"
    if text != "[]":
        assert "given.yaml" in files.findings[0]
        assert "given.yaml" in files.explain_missing("x/y:1")


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    files = catalogue(tmp_path, "")
    assert files.find("mine:1") is None
    (tmp_path / "own.yaml").write_text("images: [{image: mine, command: [x]}]")
    assert files.refresh()
    assert files.find("mine:1") is not None
    assert not files.refresh()


def test_commands_and_capabilities_of_pod_and_image(tmp_path: Path) -> None:
    text = "images: [{image: a, command: [c], args: [x], capabilities: [NET_ADMIN]}]"
    entry = catalogue(tmp_path, text).find("a")
    assert entry is not None
    assert resolve_command({}, entry) == (["c"], ["x"])
    assert resolve_command({"args": ["y"]}, entry) == (["c"], ["y"])
    assert resolve_command({"command": ["d"]}, entry) == (["d"], [])
    assert resolve_capabilities({}, entry) == DEFAULT_CAPABILITIES | {"NET_ADMIN"}
    wanted = {"securityContext": {"capabilities": {"drop": ["ALL"], "add": ["CAP_KILL"]}}}
    assert resolve_capabilities(wanted, entry) == {"KILL", "NET_ADMIN"}
    assert "SYS_ADMIN" in resolve_capabilities({"securityContext": {"privileged": True}}, entry)


def test_a_shells_image_takes_a_whole_command_line_as_args(tmp_path: Path) -> None:
    """``kubectl run x --image=busybox -- sh -c ...`` gives args, which replace those of the image."""
    image = Catalogue([], own=tmp_path / "none.yaml").find("busybox")
    assert image is not None
    assert resolve_command({"args": ["sh", "-c", "true"]}, image) == ([], ["sh", "-c", "true"])
    assert resolve_command({}, image) == ([], ["sh"])


def test_a_program_that_the_machine_lacks_is_an_obstacle(tmp_path: Path) -> None:
    text = """
images:
- {image: db, command: [x], requires: [no-such-db, nor-this], note: "apt-get install it."}
- {image: shell, command: [sh], requires: [no-such-db, sh]}
"""
    files = catalogue(tmp_path, text)
    assert files.obstacle("db:1") == (
        'image "db:1" needs no-such-db or nor-this on this machine. apt-get install it.'
    )
    assert files.obstacle("shell:1") == ""
    assert "is not in the image catalogue" in files.obstacle("unknown:1")


def test_programs_of_an_image(tmp_path: Path) -> None:
    text = 'images: [{image: a, command: [x], programs: {nc: ["{python}", "-m", "n"], /usr/bin/f: [f]}}]'
    entry = catalogue(tmp_path, text).find("a")
    assert entry is not None
    assert entry.programs == {"nc": (sys.executable, "-m", "n"), "/usr/bin/f": ("f",)}
    wrong = catalogue(tmp_path, "images: [{image: a, programs: {nc: nc}}]")
    assert "'programs' must be a mapping" in wrong.findings[0]
