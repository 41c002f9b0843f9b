"""The image catalogue: which command of this machine an image reference stands for.

In: YAML files (the user's own, those given with --catalogue, the built-in one; the first match
wins). Out: an ``Image``, or None. Promises: a wrong file is a finding that names the file and the
entry, and never hides the entries that are right; a changed file takes effect on its own.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import yaml

from localkube.node.runtime.syscalls import CAPABILITIES

SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BUILT_IN: Final = Path(__file__).with_name("images.yaml")
_LOOK_S: Final = 0.5  # how often changed files are looked for while a pod waits for an image
_FIELDS: Final = frozenset(
    {
        "image",
        "command",
        "args",
        "env",
        "workingDir",
        "capabilities",
        "programs",
        "requires",
        "user",
        "note",
    }
)


@dataclass(frozen=True, slots=True)
class Image:
    """One entry: what a container of this image runs unless the pod says otherwise."""

    pattern: str
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    programs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Programs that the image has besides: path or name -> command. The machine's own go before them."""
    requires: tuple[str, ...] = ()
    """Programs of which this machine must have one; ``note`` says how to get it."""
    working_dir: str = "/"
    capabilities: frozenset[str] = frozenset()
    source: str = ""
    note: str = ""


def user_file() -> Path:
    """Return the path of the user's own catalogue, whether it exists or not."""
    config = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(config) / "localkube" / "images.yaml"


def derive_full_reference(image: str) -> str:
    """Return ``image`` with registry, namespace and tag spelled out.

    ``busybox`` is ``docker.io/library/busybox:latest``; a digest takes the place of the tag.
    """
    name, _, digest = image.partition("@")
    head, slash, rest = name.partition("/")
    if not slash:
        name = f"docker.io/library/{name}"
    elif head != "*" and not ("." in head or ":" in head or head == "localhost"):
        name = f"docker.io/{head}/{rest}"
    last = name.rpartition("/")[2]
    if ":" not in last:
        name = f"{name}:{digest or 'latest'}"
    return name


def _matches(pattern: str, image: str) -> bool:
    if ":" not in pattern.rpartition("/")[2] and not pattern.endswith("*"):
        pattern += ":*"
    full = derive_full_reference(image)
    return (
        fnmatchcase(image, pattern)
        or fnmatchcase(full, pattern)
        or fnmatchcase(full, derive_full_reference(pattern))
    )


def decode_catalogue(text: str, path: Path) -> tuple[list[Image], list[str]]:
    """Return the usable entries of one file and what is wrong with the others."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        return [], [f"{path}: not valid YAML: {error}"]
    entries = (document or {}).get("images") if isinstance(document or {}, dict) else None
    if entries is None:
        return [], [] if not document else [f"{path}: has no list 'images'"]
    if not isinstance(entries, list):
        return [], [f"{path}: 'images' must be a list"]
    images: list[Image] = []
    findings: list[str] = []
    for index, entry in enumerate(entries):
        problem = _problem(entry)
        if problem:
            findings.append(f"{path}: images[{index}]: {problem}")
            continue
        images.append(_image(entry, path))
    return images, findings


def _problem(entry: Any) -> str:
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
        return "must be a mapping with a string 'image'"
    unknown = sorted(str(key) for key in entry.keys() - _FIELDS)
    if unknown:
        return f"unknown field {unknown[0]!r}; known are {', '.join(sorted(_FIELDS))}"
    for name in ("command", "args", "capabilities", "requires"):
        value = entry.get(name) or []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            return f"{name!r} must be a list of strings (quote numbers)"
    for name in entry.get("capabilities") or []:
        if name.removeprefix("CAP_") not in CAPABILITIES:
            return f"'capabilities' has the unknown name {name!r}"
    env = entry.get("env") or {}
    if not isinstance(env, dict):
        return "'env' must be a mapping of names to strings"
    programs = entry.get("programs") or {}
    if not isinstance(programs, dict) or not all(
        isinstance(line, list) and line and all(isinstance(word, str) for word in line)
        for line in programs.values()
    ):
        return "'programs' must be a mapping of paths or names to lists of strings"
    return ""


def _image(entry: Mapping[str, Any], path: Path) -> Image:
    places = {
        "{python}": sys.executable,
        "{bin}": str(Path(sys.executable).parent),
        "{dir}": str(path.resolve().parent),
    }

    def fill(text: str) -> str:
        for name, value in places.items():
            text = text.replace(name, value)
        return text

    return Image(
        pattern=entry["image"],
        command=tuple(fill(item) for item in entry.get("command") or ()),
        args=tuple(fill(item) for item in entry.get("args") or ()),
        env={str(k): fill(str(v)) for k, v in (entry.get("env") or {}).items()},
        programs={
            str(name): tuple(fill(word) for word in line)
            for name, line in (entry.get("programs") or {}).items()
        },
        requires=tuple(entry.get("requires") or ()),
        working_dir=fill(entry.get("workingDir") or "/"),
        capabilities=frozenset(
            name.removeprefix("CAP_") for name in entry.get("capabilities") or ()
        ),
        source=str(path),
        note=str(entry.get("note") or ""),
    )


class Catalogue:
    """All catalogue files together, read again when one changes."""

    def __init__(self, files: Sequence[Path], own: Path | None = None) -> None:
        self.own = own or user_file()
        self._files = [self.own, *files, _BUILT_IN]
        self._stamps: list[tuple[int, int] | None] = []
        self._images: list[Image] = []
        self.findings: list[str] = []
        self.refresh()

    @property
    def directories(self) -> list[str]:
        """The folders of the files that exist: containers can see what lies in them."""
        return [str(path.resolve().parent) for path in self._files if path.exists()]

    def refresh(self) -> bool:
        """Read the files again if one changed; return whether one did."""
        stamps = [_stamp(path) for path in self._files]
        if stamps == self._stamps:
            return False
        self._stamps = stamps
        self._images, self.findings = [], []
        for path, stamp in zip(self._files, stamps, strict=True):
            if stamp is None:
                if path is not self.own:
                    self.findings.append(f"{path}: no such catalogue file")
                continue
            try:
                images, findings = decode_catalogue(path.read_text(), path)
            except (OSError, UnicodeDecodeError) as error:
                images, findings = [], [f"{path}: cannot be read: {error}"]
            self._images += images
            self.findings += findings
        return True

    def find(self, reference: str) -> Image | None:
        """Return the first entry that matches ``reference``."""
        return next((i for i in self._images if _matches(i.pattern, reference)), None)

    async def changed(self, limit_s: float, reference: str = "") -> None:
        """Return when a file changed or ``reference`` can run, or after ``limit_s`` seconds."""
        loop = asyncio.get_running_loop()
        end = loop.time() + limit_s

        def news() -> bool:
            return self.refresh() or bool(reference and not self.obstacle(reference))

        while not news() and loop.time() < end:  # noqa: ASYNC110 - files do not call back
            await asyncio.sleep(min(_LOOK_S, max(0.0, end - loop.time())))

    def obstacle(self, reference: str) -> str:
        """Return why ``reference`` cannot run here and what to do about it; empty when it can."""
        image = self.find(reference)
        if image is None:
            return self.explain_missing(reference)
        if image.requires and not any(shutil.which(p, path=SYSTEM_PATH) for p in image.requires):
            wanted = " or ".join(image.requires)
            return f'image "{reference}" needs {wanted} on this machine. {image.note}'.strip()
        return ""

    def explain_missing(self, reference: str) -> str:
        """Return the text that tells how to make ``reference`` known."""
        name, _, _ = derive_full_reference(reference).rpartition(":")
        text = (
            f'image "{reference}" is not in the image catalogue: here an image stands for a '
            f'command of this machine. Add to {self.own}: images: [{{image: "{name}:*", '
            'command: ["/path/to/program"]}]. It takes effect at once.'
        )
        if self.findings:
            text += f" Also wrong: {'; '.join(self.findings)}"
        return text


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
