"""What the agent says when the machine, not the configuration, is why Envoy does not run."""

from __future__ import annotations

import subprocess
import sys

# In a user namespace of its own, whose limit is its own too, so that no other program is disturbed.
SCRIPT = (
    "echo 2 > /proc/sys/user/max_inotify_instances; exec "
    "{python} -c 'from meltemi.adapters.envoy_process import missing_resource as m; print(m())'"
)


def test_used_up_inotify_instances_are_told() -> None:
    said = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", SCRIPT.format(python=sys.executable)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "sysctl -w fs.inotify.max_user_instances=" in said
