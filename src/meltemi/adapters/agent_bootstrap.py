"""Ask istiod for the BOOTSTRAP patches of EnvoyFilters and merge them into the start configuration, in a process of its own.

In: ``BootstrapQuestion``. Out: the bootstrap with the patches, checked by Envoy itself, or the reason why there is none. What
Envoy would refuse is not used: one bad patch must not keep a pod from starting.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from meltemi.adapters.agent_call import IstiodCall, NoAnswerError, ask_in_child
from meltemi.adapters.agent_files import write_atomically

_PROGRAM = "meltemi.adapters.agent_bootstrap"
_CHECK_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BootstrapQuestion(IstiodCall):
    """Whom to ask, and the bootstrap as it is without patches; its node says who asks."""

    bootstrap: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PatchedBootstrap:
    """``text`` is empty when there is no patch, or when ``error`` says why there is no answer."""

    text: str = ""
    patches: tuple[str, ...] = ()
    error: str = ""


async def ask_for_patches(question: BootstrapQuestion) -> PatchedBootstrap:
    """Every failure comes back as ``error``."""
    try:
        fields = await ask_in_child(_PROGRAM, asdict(question), question.deadline_s)
    except NoAnswerError as error:
        return PatchedBootstrap(error=str(error))
    return PatchedBootstrap(fields["text"], tuple(fields["patches"]), fields["error"])


async def refusal(binary: str, text: str, path: Path, environment: Mapping[str, str]) -> str:
    """Why Envoy would not start with a bootstrap; "" when it would. ``path`` is where it is written for the check."""
    write_atomically(path, text, 0o644)
    process = await asyncio.create_subprocess_exec(
        binary,
        *("--mode", "validate", "-c", str(path), "-l", "error", "--allow-unknown-static-fields"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=dict(environment),
    )
    try:
        async with asyncio.timeout(_CHECK_S):
            out, _ = await process.communicate()
    except TimeoutError:
        return "Envoy did not come to an end with it"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        path.unlink(missing_ok=True)
    said = out.decode(errors="replace").strip()
    # It may crash after the verdict when it cleans up its statistics scopes: the text counts.
    return "" if said.endswith("OK") else said.rpartition("\n")[2]


def main() -> None:
    """The child: read the question, ask, merge, answer."""
    # Only the child pays for these imports.
    from meltemi.adapters.agent_bootstrap_client import ask

    json.dump(asdict(ask(BootstrapQuestion(**json.load(sys.stdin)))), sys.stdout)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
