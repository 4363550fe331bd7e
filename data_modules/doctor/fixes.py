"""Repairs that cannot lose anything: the original of every file that is touched is kept."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from data_modules.doctor.checks import Finding
from vos_lightning.io.label_maps import read_label_map, write_label_map


def backup_folder(root: Path) -> Path:
    """Where originals go: beside the data set, so that no reader takes them for data."""
    root = root.resolve()
    return root.with_name(f"{root.name}.before-doctor")


def _free(path: Path) -> Path:
    """The path, or one beside it that nothing has yet: an earlier repair may have kept a file of the same name."""
    candidates = itertools.chain([path], (path.with_name(f"{path.name}.{number}") for number in itertools.count(1)))
    return next(candidate for candidate in candidates if not candidate.exists())


def fix(root: Path, findings: Iterable[Finding]) -> list[str]:
    """Repair what is safe.

    - ``hidden-file``: moved into the backup folder;
    - ``colour-mask``: a mask whose colours are all palette colours becomes an indexed PNG with the same ids, in one step.

    Everything else needs a decision, or another copy of the data.

    Args:
        root: of the data set.
        findings: of any kind.

    Returns:
        What was done, one line a file.
    """
    done = []
    for path in dict.fromkeys(Path(finding.path) for finding in findings if finding.fixable):
        kept = _free(backup_folder(root) / path.absolute().relative_to(root.absolute()))
        kept.parent.mkdir(parents=True, exist_ok=True)
        if path.name.startswith(".") or path.suffix.lower() not in (".png",):
            shutil.move(path, kept)
            done.append(f"{path}: moved to {kept}")
            continue
        label_map = read_label_map(path)
        temporary = kept.with_name(f".{kept.name}.tmp")
        shutil.copy2(path, temporary)
        os.replace(temporary, kept)
        write_label_map(path, label_map)
        done.append(f"{path}: written with indices, the original is {kept}")
    return done
