"""``meltemi local``: what it tells people to type is what they can type."""

import subprocess
import sys
from pathlib import Path


def test_help_names_the_command_that_was_typed() -> None:
    command = [str(Path(sys.executable).with_name("meltemi")), "local", "up", "--help"]
    help_text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert help_text.startswith("Usage: meltemi local up [OPTIONS]")
