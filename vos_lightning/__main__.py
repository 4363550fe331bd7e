"""``vos``, or ``python -m vos_lightning``."""

import sys

from vos_lightning.app import cli
from vos_lightning.app.allocation import keep_freed_memory


def main() -> int:
    """Run the command of this process's arguments; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # file names need not be valid text
    keep_freed_memory()
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
