"""``written.jsonl``: which command has written what into a folder, and whether it has finished."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vos_lightning.io.texts import parse_json, read_text

RECORD_NAME = re.compile(r"written(-[0-9]+)?\.jsonl")
"""Name of a record; each of several processes has its own."""


@dataclass(frozen=True)
class Item:
    """Files that belong together, and their digests."""

    name: str | None
    files: dict[str, str | None]
    error: str | None
    made_from: str | None = None

    def end(self) -> str:
        """The line that follows on the files in a record."""
        made_from = {} if self.made_from is None else {"made_from": self.made_from}
        return json.dumps({"item": self.name, "error": self.error, **made_from}) + "\n"


@dataclass
class Record:
    """Content of a record."""

    command: str
    source: str | None
    items: list[Item]
    files: dict[str, str | None]
    """Files of all items, and those that follow on the last item."""
    begun: dict[str, str | None]
    """Files that follow on the last item."""


def lines_of(files: Mapping[str, str | None]) -> str:
    """Files and their digests, as a record holds them."""
    return "".join(json.dumps([name, digest]) + "\n" for name, digest in files.items())


def read_record(path: Path) -> Record:
    """Read a record; a line that was cut off when its process was killed does not count.

    Raises:
        ValueError: it is damaged.
    """
    try:
        head, *rest = (parse_json(line, path) for line in read_text(path).split("\n")[:-1])
        of_item: dict[str, str | None] = {}
        record = Record(str(head["command"]), head.get("source"), [], {}, of_item)
        for entry in rest:
            if isinstance(entry, dict):
                record.items.append(Item(entry["item"], of_item, entry["error"], entry.get("made_from")))
                of_item = record.begun = {}
            else:
                name, digest = entry
                record.files[name] = of_item[name] = digest
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path}: the record of an earlier run is damaged; choose another output folder") from None
    return record


def digest_of(path: Path) -> str:
    """Digest of the content of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
