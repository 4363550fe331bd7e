"""``python -m vos_lightning``."""

import sys

from vos_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
