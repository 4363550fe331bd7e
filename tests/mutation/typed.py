"""A pytest plugin in the place of jaxtyping's own, which refuses to run twice in a process: mutmut runs pytest once a mutant."""

from jaxtyping import install_import_hook

install_import_hook(["vos_lightning", "data_modules"], "beartype.beartype")
