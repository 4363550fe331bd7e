"""Repairs that cannot lose data: the original of every changed file is kept."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable
from pathlib import Path

from data_modules.doctor.files import Finding
from vos_lightning.io.files import Replacement, write_atomically
from vos_lightning.io.label_maps import encode_label_map, read_label_map


def backup_folder(root: Path) -> Path:
    """Folder of the originals: beside the data set, so that no program takes them for data."""
    root = root.resolve()
    return root.with_name(f"{root.name}.before-doctor")


def _free(path: Path) -> Path:
    """The path, or a free one beside it, because an earlier repair may have kept a file of the same name."""
    candidates = itertools.chain([path], (path.with_name(f"{path.name}.{number}") for number in itertools.count(1)))
    return next(candidate for candidate in candidates if not candidate.exists())


def fix(root: Path, findings: Iterable[Finding]) -> list[str]:
    """Repair what is safe.

    - ``hidden-file``: moved into the backup folder;
    - ``colour-mask``: a mask that has only palette colours becomes an indexed PNG with the same ids, atomically.

    Everything else needs a decision of the user, or another copy of the data.

    Args:
        root: folder of the data set.
        findings: findings of any kind.

    Returns:
        One line for each repaired file.
    """
    done = []
    for path in dict.fromkeys(Path(finding.path) for finding in findings if finding.fixable):
        kept = _free(backup_folder(root) / path.absolute().relative_to(root.absolute()))
        if path.name.startswith(".") or path.suffix.lower() not in (".png",):
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, kept)
            done.append(f"{path}: moved to {kept}")
            continue
        label_map = read_label_map(path)
        with Replacement(kept) as original:
            shutil.copy2(path, original.temporary)
        write_atomically(path, encode_label_map(label_map))  # durable, as these are the user's data
        done.append(f"{path}: written with indices, the original is {kept}")
    return done
