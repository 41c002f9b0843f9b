"""What the translation of one class carries along: its inputs, and the findings it collects."""

from __future__ import annotations

from dataclasses import dataclass, field

from meltemi.model.mesh import ProxyConfig
from meltemi.model.origin import Finding, Level, Origin
from meltemi.push.classes import ProxyClass
from meltemi.push.context import PushContext
from meltemi.translate.scope import Scope


@dataclass(frozen=True)
class Build:
    """One translation. ``findings`` is the only part that grows."""

    context: PushContext
    proxy: ProxyClass
    scope: Scope
    findings: list[Finding] = field(default_factory=list)

    @property
    def settings(self) -> ProxyConfig:
        """What the proxy's own configuration, else the mesh's default, says about traffic."""
        return self.proxy.settings or self.context.mesh.default_config

    def report(self, code: str, text: str, origin: Origin, remedy: str = "") -> None:
        """Record something wrong with the user's configuration."""
        self.findings.append(Finding(code, Level.WARNING, text, origin, remedy))

    def report_both(
        self, code: str, text: str, origins: tuple[Origin, Origin], remedy: str = ""
    ) -> None:
        """Record a conflict at both objects, each time once."""
        for origin in origins:
            found = Finding(code, Level.WARNING, text, origin, remedy)
            if found not in self.findings:
                self.findings.append(found)
