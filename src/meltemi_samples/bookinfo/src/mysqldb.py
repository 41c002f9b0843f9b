"""mysqldb: MariaDB or MySQL of this machine, with the ratings in it, as the image of that name has them.

``python -m meltemi_samples.bookinfo.src.mysqldb [server options]``. Environment: MYSQL_ROOT_PASSWORD. The data is in
/var/lib/mysql where that can be written (a volume), else in a folder that goes with the container.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DATA = Path("/var/lib/mysql")
TABLES = Path(__file__).with_name("ratings.sql")
SERVERS = ("mariadbd", "mysqld")
SYSTEM = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# MySQL's only, and in Istio's manifest for it.
MYSQL_ONLY = "--default-authentication-plugin"


def find_server() -> str:
    """The path of the server program."""
    found = next((path for name in SERVERS if (path := shutil.which(name, path=SYSTEM))), None)
    if found is None:
        raise SystemExit(
            "neither MariaDB nor MySQL is installed: sudo apt-get install mariadb-server"
        )
    return found


def is_mariadb(server: str) -> bool:
    """Which of the two it is."""
    version = subprocess.run([server, "--version"], capture_output=True, text=True, check=True)
    return "MariaDB" in version.stdout


def account() -> list[str]:
    """The option that root needs; other users may not name an account."""
    return ["--user=root"] if os.getuid() == 0 else []


def prepare(server: str, data: Path, mariadb: bool) -> None:
    """Make the system tables where there are none."""
    if (data / "mysql").exists():
        return
    if mariadb:
        installer = shutil.which("mariadb-install-db", path=SYSTEM) or "mysql_install_db"
        line = [installer, "--no-defaults", f"--datadir={data}", *account(), "--skip-test-db",
                "--auth-root-authentication-method=normal"]  # fmt: skip
    else:
        line = [
            server,
            "--no-defaults",
            "--initialize-insecure",
            f"--datadir={data}",
            *account(),
        ]
    subprocess.run(line, check=True, stdout=sys.stderr)


def first_statements(password: str) -> str:
    """What the server does before it listens: root from everywhere, the table, its rows. One statement a line."""
    quoted = password.replace("\\", "\\\\").replace("'", "\\'")
    return (
        f"CREATE USER IF NOT EXISTS 'root'@'%' IDENTIFIED BY '{quoted}';\n"
        f"ALTER USER 'root'@'%' IDENTIFIED BY '{quoted}';\n"
        f"ALTER USER 'root'@'localhost' IDENTIFIED BY '{quoted}';\n"
        "GRANT ALL PRIVILEGES ON *.* TO 'root'@'%' WITH GRANT OPTION;\n"
        + TABLES.read_text(encoding="utf-8")
    )


def split_options(words: list[str], mariadb: bool) -> list[str]:
    """The server options of a manifest; MariaDB does not know all of MySQL's."""
    kept, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if mariadb and word.partition("=")[0] == MYSQL_ONLY:
            if "=" not in word and rest and not rest[0].startswith("-"):
                rest.pop(0)
            continue
        if not word.startswith("-") and kept and kept[-1].startswith("--") and "=" not in kept[-1]:
            kept[-1] += f"={word}"
        else:
            kept.append(word)
    return kept


def main() -> None:
    """Become the server."""
    server = find_server()
    mariadb = is_mariadb(server)
    data = DATA if os.access(DATA, os.W_OK) else Path(tempfile.mkdtemp(prefix="mysql-"))
    prepare(server, data, mariadb)
    statements = Path(tempfile.mkdtemp(prefix="mysql-init-")) / "init.sql"
    statements.write_text(
        first_statements(os.environ.get("MYSQL_ROOT_PASSWORD", "")), encoding="utf-8"
    )
    statements.chmod(0o600)
    options = ["--no-defaults", f"--datadir={data}", *account(), "--bind-address=0.0.0.0",
               f"--socket={statements.parent}/mysqld.sock", f"--init-file={statements}",
               f"--pid-file={statements.parent}/mysqld.pid"]  # fmt: skip
    if not mariadb:
        options.append("--mysqlx=OFF")
    os.execv(server, [server, *options, *split_options(sys.argv[1:], mariadb)])


if __name__ == "__main__":
    main()
