"""``meltemi local``: what it tells people to type is what they can type."""

import os
import subprocess
import sys
from pathlib import Path


def test_help_names_the_command_that_was_typed() -> None:
    command = [str(Path(sys.executable).with_name("meltemi")), "local", "up", "--help"]
    help_text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert help_text.startswith("Usage: meltemi local up [OPTIONS]")


def test_advice_can_be_typed(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("meltemi")), "local", "env", "--name", "none"]
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "run `meltemi local up --detach --name none` first" in done.stderr
