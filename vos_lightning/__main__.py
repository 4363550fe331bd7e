"""``vos``, or ``python -m vos_lightning``."""

import sys

from vos_lightning.app.cli import main


def run() -> None:
    """Run the command of this process and end it with the command's exit code."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # file names need not be valid text
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
