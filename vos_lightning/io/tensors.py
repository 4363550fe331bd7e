"""Files that PyTorch has written, of which tensors and plain values are read and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vos_lightning.io.files import regular_file


def read_tensors(path: Path, otherwise: str, mmap: bool = False) -> Any:
    """The content of a file of tensors and plain values, on the host.

    Args:
        path: the file.
        otherwise: what the message says if the file is none, such as "this is no checkpoint, or it is damaged".
        mmap: map the file into memory, so that tensors that are not used are not read.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is damaged, or holds more than tensors and plain values.
    """
    try:
        return torch.load(regular_file(path), map_location="cpu", weights_only=True, mmap=mmap)
    except OSError:
        raise
    except Exception as error:  # a damaged file is a program that ends anywhere, so that its reader raises errors of any kind
        raise ValueError(f"{path}: {otherwise}") from error
