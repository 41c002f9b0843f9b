"""``meltemi`` and, by that name too, ``istioctl``: the verbs, each loaded when it is called.

Exit codes are Istio's: 0 done, 1 failed, 64 wrong usage, 69 the cluster cannot be reached, 79 analysis found
problems. A failure is one line on stderr that says what is wrong and what to do; never a traceback.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import click

from meltemi.commands.failure import EX_USAGE

# verb -> (module, attribute, one line for the overview)
VERBS: dict[str, tuple[str, str, str]] = {
    "analyze": ("analyze", "analyze", "find mistakes in files or in the cluster"),
    "ca": ("ca", "ca", "the certificate authority: status, and rotation of its root"),
    "compile": ("compile", "compile_", "what every proxy would be told, from files alone"),
    "demo": ("demo", "demo", "a running mesh with Bookinfo on this machine"),
    "experimental": ("workload", "experimental", "x workload: machines in the mesh"),
    "install": ("install", "install", "install or change the mesh in a cluster"),
    "kube-inject": ("kube_inject", "kube_inject", "add sidecars to manifests, offline"),
    "local": ("local", "local", "the one-machine Kubernetes: up, down, status, env, reset"),
    "manifest": ("install", "manifest", "print what an installation consists of"),
    "operator": ("operator", "operator", "the in-cluster operator: init, dump, remove"),
    "proxy-config": ("proxy_config", "proxy_config", "what an Envoy has: clusters, listeners, ..."),
    "uninstall": ("install", "uninstall", "remove the mesh from a cluster"),
    "validate": ("validate", "validate", "check configuration files"),
    "version": ("version", "version", "versions of this program, the control plane, the proxies"),
}
ALIASES = {
    "apply": "install",
    "pc": "proxy-config",
    "x": "experimental",
    "exp": "experimental",
}


class VerbGroup(click.Group):
    """A group that imports a verb's module when the verb is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in the order of the alphabet."""
        return sorted(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a verb or of its short form."""
        verb = ALIASES.get(cmd_name, cmd_name)
        if verb not in VERBS:
            return None
        module, attribute, _help = VERBS[verb]
        command = getattr(importlib.import_module(f"meltemi.commands.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The overview, without loading any verb."""
        with formatter.section("Commands"):
            formatter.write_dl([(verb, VERBS[verb][2]) for verb in sorted(VERBS)])


@click.group(cls=VerbGroup, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """A service mesh with Istio's API, a Python control plane and unmodified Envoy proxies."""


def main() -> None:
    """Entry point of the console scripts."""
    name = "istioctl" if Path(sys.argv[0]).name == "istioctl" else "meltemi"
    try:
        code = cli.main(prog_name=name, standalone_mode=False)
    except click.UsageError as error:
        error.show()
        sys.exit(EX_USAGE)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
