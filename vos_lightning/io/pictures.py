"""Writing pictures, without PyTorch."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from vos_lightning.io.files import write_atomically


def write_png(path: Path, picture: Image.Image) -> None:
    """Write a picture atomically."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue(), durable=False)
