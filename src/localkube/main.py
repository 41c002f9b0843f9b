"""The command `localkube`: up, down, status, env, reset, node.

Exit codes: 0 done, 1 failed (with a message that says what to do), 2 wrong usage; `status`: 3 when
the cluster is not running. Imports what a verb needs when it runs, so that each starts fast.
"""

import json
import os
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import Any, Final

import click

from localkube.kit.program import PROGRAM
from localkube.supervisor.runspec import RunSpec
from localkube.supervisor.state import (
    DEFAULT_NAME,
    StateDirectory,
    UserError,
    current_owner,
    delete_state,
    load_settings,
    state_directory,
    wait_until_free,
)

_NOT_RUNNING: Final = 3
_NODE_NAME: Final = "node0"
_DOWN_DEADLINE: Final = 80.0  # seconds; longer than the longest drain

name_option = click.option(
    "--name", default=DEFAULT_NAME, show_default=True, help="Which cluster; each has its own state."
)
catalogue_option = click.option(
    "--catalogue",
    "catalogues",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File that maps image names to commands of this machine (repeatable).",
)


class _Cli(click.Group):
    """Turns a UserError of any verb into its message and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            fail(str(error))


def _named(name: str) -> str:
    return "" if name == DEFAULT_NAME else f" --name {name}"


def fail(message: str) -> None:
    """Print a message for the user, and end with exit code 1."""
    click.echo(f"localkube: {message}", err=True)
    sys.exit(1)


@click.group(cls=_Cli, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="meltemi", prog_name=PROGRAM)
def main() -> None:
    """A one-machine Kubernetes: pods are processes, nothing needs root or a container engine."""


@main.command()
@click.option("--detach", "-d", is_flag=True, help="Return when the cluster is ready.")
@click.option("--api-port", type=click.IntRange(1, 65535), help="Port on 127.0.0.1 [6443].")
@click.option("--no-node", is_flag=True, help="Only the API server and controllers, no pods.")
@catalogue_option
@name_option
def up(
    detach: bool, api_port: int | None, no_node: bool, catalogues: tuple[Path, ...], name: str
) -> None:
    """Start the cluster (again: its state is kept)."""
    from localkube.supervisor.launch import run_detached, run_foreground

    state = state_directory(name)
    state.prepare()
    owner = current_owner(state)
    if owner is not None and not owner.stopping:
        click.echo(f"cluster {name!r} is already running (pid {owner.pid})")
        return
    spec = RunSpec(
        name=name,
        state_dir=str(state.root),
        api_port=0,
        load_balancer_network="",
        control_plane=True,
        node=not no_node,
        node_name=_NODE_NAME,
        node_kubeconfig=str(state.node_kubeconfig),
        catalogues=tuple(str(path.absolute()) for path in catalogues),
    )
    run = run_detached if detach else run_foreground
    with _Display(state, detached=detach) as display:
        code = run(spec, state, api_port, display.progress)
    sys.exit(code)


@main.command()
@click.option("--now", is_flag=True, help="Do not wait for pods to end; kill them.")
@name_option
def down(now: bool, name: str) -> None:
    """Stop the cluster; its state is kept."""
    state = state_directory(name)
    click.echo(f"cluster {name!r} {'is stopped' if stop(state, now) else 'is not running'}")


def stop(state: StateDirectory, now: bool) -> bool:
    """Stop a cluster and wait for its end -> whether it was running. Raises UserError."""
    owner = current_owner(state)
    if owner is None:
        return False
    try:
        if owner.pid > 0:
            os.kill(owner.pid, signal.SIGKILL if now else signal.SIGTERM)
    except ProcessLookupError:
        pass
    except PermissionError as error:
        raise UserError(f"pid {owner.pid} belongs to another user; ask them") from error
    if wait_until_free(state, _DOWN_DEADLINE):
        if now:
            state.pid_file.unlink(missing_ok=True)
        return True
    if owner.pid > 0:
        os.kill(owner.pid, signal.SIGKILL)
    if not wait_until_free(state, 10):
        raise UserError(f"pid {owner.pid} does not end; see {state.logs}")
    return True


@main.command()
@click.option("--output", "-o", type=click.Choice(["table", "json", "yaml"]), default="table")
@name_option
def status(output: str, name: str) -> None:
    """Show the node, the pods, and where LoadBalancer Services answer. Exit code 3: not running."""
    from localkube.supervisor import report

    state = state_directory(name)
    owner = current_owner(state)
    settings = load_settings(state)
    if owner is None or settings is None:
        if output == "table":
            click.echo(
                f"cluster {name!r} is not running; `{PROGRAM} up --detach{_named(name)}` starts it"
            )
        else:
            _print_data({"name": name, "running": False}, output)
        sys.exit(_NOT_RUNNING)
    found = report.collect(state, settings.api_port, owner.pid)
    if output != "table":
        _print_data(found, output)
        return
    from rich.console import Console

    console = Console(soft_wrap=True)
    for part in report.tables(found):
        console.print(part)


def _print_data(data: dict[str, Any], output: str) -> None:
    if output == "json":
        click.echo(json.dumps(data, indent=2))
        return
    import yaml

    click.echo(yaml.safe_dump(data, sort_keys=False), nl=False)


@main.command()
@name_option
def env(name: str) -> None:
    """Print the shell lines that point kubectl at the cluster, for eval "$(...)"."""
    state = state_directory(name)
    if not state.kubeconfig.exists():
        fail(
            f"cluster {name!r} has never been started: run `{PROGRAM} up --detach{_named(name)}` first"
        )
    click.echo(f"export KUBECONFIG={shlex.quote(str(state.kubeconfig))}")
    # Not resolved: in a virtual environment the link's folder is the one with the programs.
    programs = Path(sys.executable).parent
    if shutil.which("kubectl") is None and os.access(programs / "kubectl", os.X_OK):
        click.echo(f'export PATH="$PATH":{shlex.quote(str(programs))}')


@main.command()
@name_option
def reset(name: str) -> None:
    """Stop the cluster and delete its state: objects, keys, logs, pods' files."""
    state = state_directory(name)
    stop(state, now=True)
    existed = state.root.exists()
    delete_state(state)
    click.echo(f"cluster {name!r} {'is deleted' if existed else 'does not exist'}")


@main.command()
@click.option(
    "--kubeconfig",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="How to reach the API server to join.",
)
@click.option("--node-name", default=_NODE_NAME, show_default=True)
@catalogue_option
def node(kubeconfig: Path, node_name: str, catalogues: tuple[Path, ...]) -> None:
    """Join any API server with a node whose pods are processes of this machine."""
    from localkube.client.errors import KubeconfigError
    from localkube.client.kubeconfig import from_kubeconfig
    from localkube.supervisor.launch import run_foreground

    try:
        from_kubeconfig(kubeconfig)
    except KubeconfigError as error:
        fail(str(error))
    state = state_directory(f"node-{node_name}")
    state.prepare()
    spec = RunSpec(
        name=state.name,
        state_dir=str(state.root),
        api_port=0,
        load_balancer_network="",
        control_plane=False,
        node=True,
        node_name=node_name,
        node_kubeconfig=str(kubeconfig.absolute()),
        catalogues=tuple(str(path.absolute()) for path in catalogues),
    )
    with _Display(state, detached=False) as display:
        code = run_foreground(spec, state, None, display.progress)
    sys.exit(code)


class _Display:
    """Shows progress events: a moving line on a terminal, plain lines elsewhere."""

    def __init__(self, state: StateDirectory, *, detached: bool) -> None:
        self._state = state
        self._detached = detached
        self._spinner: Any = None

    def __enter__(self) -> "_Display":
        if self._detached and sys.stderr.isatty():
            from rich.console import Console

            self._spinner = Console(stderr=True).status("starting the API server")
            self._spinner.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._stop_spinner()

    def _stop_spinner(self) -> None:
        if self._spinner is not None:
            self._spinner.stop()
            self._spinner = None

    def progress(self, event: str, fields: dict[str, Any]) -> None:
        """One event of the supervisor."""
        match event:
            case "api-ready":
                self._step(f"API server ready ({fields['seconds']:.1f} s)", "starting the node")
            case "node-ready":
                self._step(f"node ready ({fields['seconds']:.1f} s)", "")
            case "ready":
                self._announce()
            case "started" if self._state.name.startswith("node-"):
                self._line("the node is running; Ctrl-C drains its pods and stops it")
            case "child-ended":
                self._line(f"{fields['child']} {fields['why']}, starting it again")
            case "restarting":
                self._line("the cluster's processes ended, starting them again")
            case "stopping" if not fields:
                self._line("stopping")
            case "stopped":
                self._line("stopped")
            case "failed":
                self._line(f"localkube: {fields['message']}")

    def _step(self, done: str, following: str) -> None:
        self._line(done)
        if self._spinner is not None and following:
            self._spinner.update(following)

    def _line(self, text: str) -> None:
        if self._spinner is not None:
            # Through the spinner's console, which draws itself anew below the line.
            self._spinner.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            click.echo(text, err=True)

    def _announce(self) -> None:
        settings = load_settings(self._state)
        if settings is None:
            return  # a node that joined another cluster
        self._stop_spinner()
        click.echo(
            f"cluster {self._state.name!r} is up at https://127.0.0.1:{settings.api_port}\n"
            f'point kubectl at it:  eval "$({PROGRAM} env{_named(self._state.name)})"'
        )


if __name__ == "__main__":
    main(prog_name=PROGRAM)
