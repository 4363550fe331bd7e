"""``python -m vos_lightning``."""

import sys

from vos_lightning.app.cli import main

if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # file names need not be valid text
    sys.exit(main(sys.argv[1:]))
