"""What is written never touches what is read, and runs are never mixed."""

from __future__ import annotations

import errno
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vos_lightning.io.files import write_atomically
from vos_lightning.io.outputs import OutputFolder
from vos_lightning.io.overlaps import claim_file, refuse_overlap


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def write(output: OutputFolder, *names: str) -> None:
    for name in names:
        output.put(name, functools.partial(write_atomically, content=name.encode()))


class TestOverlap:
    @pytest.fixture
    def project(self, tmp_path: Path) -> Path:
        (tmp_path / "p" / "masks").mkdir(parents=True)
        (tmp_path / "p" / "masks" / "0.png").write_bytes(b"drawn")
        (tmp_path / "p" / "video.mp4").write_bytes(b"film")
        (tmp_path / "link").symlink_to(tmp_path / "p")
        os.link(tmp_path / "p" / "video.mp4", tmp_path / "hard.mp4")
        return tmp_path

    @pytest.mark.parametrize(
        ("output", "given", "words"),
        [
            ("p/masks", "p/masks", "is the input"),
            ("p", "p/masks", "holds the input"),
            ("p", "p/video.mp4", "holds the input"),
            ("p/masks/new/deeper", "p/masks", "lies in the input"),
            ("p/../p/masks", "p/masks", "is the input"),
            ("link/masks", "p/masks", "is the input"),
            ("link", "p/masks", "holds the input"),
            ("p/masks/new", "link/masks", "lies in the input"),
            ("hard.mp4", "p/video.mp4", "is the input"),
        ],
    )
    def test_refused(self, project: Path, output: str, given: str, words: str) -> None:
        with pytest.raises(ValueError, match=words) as caught:
            refuse_overlap([project / output], [None, project / "nowhere", project / given])
        assert str(project / output) in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("output", ["out", "p/out", "p/masks2", "p/masks.new/x", "maskless"])
    def test_beside_is_fine(self, project: Path, output: str) -> None:
        refuse_overlap([project / output], [project / "p" / "masks", project / "p" / "video.mp4"])

    def test_files(self, project: Path) -> None:
        film = project / "p" / "video.mp4"
        claim_file(project / "new.zip", [film], overwrite=False)
        with pytest.raises(ValueError, match=r"hard\.mp4: the file exists already; pass --overwrite"):
            claim_file(project / "hard.mp4", [], overwrite=False)
        claim_file(project / "hard.mp4", [], overwrite=True)
        with pytest.raises(ValueError, match="is the input"):
            claim_file(project / "hard.mp4", [film], overwrite=True)
        with pytest.raises(ValueError, match="is a folder"):
            claim_file(project / "p", [], overwrite=True)


class TestFolder:
    def test_a_shorter_run_replaces_a_longer_one_completely(self, tmp_path: Path) -> None:
        first = OutputFolder(tmp_path / "o", "predict")
        write(first, "masks/0.png", "masks/1.png", "a/b/c.png", "index.csv")
        first.finish()
        with pytest.raises(ValueError, match="earlier run; choose another one, or pass --overwrite"):
            OutputFolder(tmp_path / "o", "predict")
        second = OutputFolder(tmp_path / "o", "predict", overwrite=True)
        assert set(content(tmp_path / "o")) == {"masks/0.png", "masks/1.png", "a/b/c.png", "index.csv", "written.jsonl"}
        write(second, "masks/0.png")
        second.finish()
        assert set(content(tmp_path / "o")) == {"masks/0.png", "written.jsonl"}
        assert not (tmp_path / "o" / "a").exists()

    def test_a_run_that_failed_is_recognised_and_replaced(self, tmp_path: Path) -> None:
        output = OutputFolder(tmp_path / "o", "predict")
        write(output, "0.png")
        output.place("film.mp4").write_bytes(b"half a film")  # killed before keep()
        (tmp_path / "o" / f".1.png.{'a' * 32}.tmp").write_bytes(b"half a mask")
        with (tmp_path / "o" / "written.jsonl").open("a") as record:
            record.write('["1.p')
        assert json.loads((tmp_path / "o" / "written.jsonl").read_text().splitlines()[0])["finished"] is False
        again = OutputFolder(tmp_path / "o", "predict", overwrite=True)
        write(again, "9.png")
        again.finish()
        assert set(content(tmp_path / "o")) == {"9.png", "written.jsonl"}
        assert json.loads((tmp_path / "o" / "written.jsonl").read_text().splitlines()[0])["finished"] is True

    def _drawn(self, folder: Path) -> None:
        (folder / "2.png").write_bytes(b"drawn by hand")

    def _changed(self, folder: Path) -> None:
        (folder / "1.png").write_bytes(b"corrected by hand")

    def _linked(self, folder: Path) -> None:
        (folder / "1.png").rename(folder.parent / "1.png")
        (folder / "1.png").symlink_to(folder.parent / "1.png")

    @pytest.mark.parametrize("change", [_drawn, _changed, _linked])
    def test_what_a_person_has_touched_stays(self, tmp_path: Path, change: Callable[[object, Path], None]) -> None:
        output = OutputFolder(tmp_path / "o", "predict")
        write(output, "1.png", "3.png")
        output.finish()
        change(self, tmp_path / "o")
        before = content(tmp_path)
        with pytest.raises(ValueError, match=r"[12]\.png: the earlier run of `predict` has not written this file"):
            OutputFolder(tmp_path / "o", "predict", overwrite=True)
        assert content(tmp_path) == before

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_folders_of_others_are_refused(self, tmp_path: Path, overwrite: bool) -> None:
        (tmp_path / "drawn" / "masks").mkdir(parents=True)
        (tmp_path / "drawn" / "masks" / "0.png").write_bytes(b"drawn")
        with pytest.raises(ValueError, match=r"has not written \(masks\)"):
            OutputFolder(tmp_path / "drawn", "predict", overwrite=overwrite)
        write(OutputFolder(tmp_path / "curves", "curves"), "x.csv")
        with pytest.raises(ValueError, match="holds the output of `curves`"):
            OutputFolder(tmp_path / "curves", "predict", overwrite=overwrite)
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(ValueError, match="the output is a file"):
            OutputFolder(tmp_path / "file", "predict", overwrite=overwrite)

    def test_two_runs_at_once(self, tmp_path: Path) -> None:
        one, two = (OutputFolder(tmp_path / "o", "predict") for _ in range(2))
        write(one, "0.png")
        with pytest.raises(ValueError, match="another run has begun"):
            write(two, "0.png")

    def test_several_processes(self, tmp_path: Path) -> None:
        for names in (("a.png", "b.png"), ("c.png", "d.png")):
            parts = [OutputFolder(tmp_path / "o", "test", overwrite=True, part=part) for part in range(2)]
            for part, name in zip(parts, names, strict=True):
                write(part, name)
            for part in parts:
                part.finish()
            assert set(content(tmp_path / "o")) == {*names, "written.jsonl", "written-1.jsonl"}

    def test_a_full_disc_names_the_file(self, tmp_path: Path) -> None:
        def full(path: Path) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with pytest.raises(OSError, match="No space left on device") as caught:
            OutputFolder(tmp_path / "o", "predict").put("masks/7.png", full)
        assert caught.value.filename == str(tmp_path / "o" / "masks" / "7.png")

    @pytest.mark.parametrize(
        "name",
        ["../a.png", "masks/../../a.png", "/tmp/a.png", "masks//a.png", "", "masks/..", "a\\b", "a\0b", "x" * 250, "y" * 300],
    )
    def test_nothing_is_written_outside(self, tmp_path: Path, name: str) -> None:
        first = OutputFolder(tmp_path / "o", "predict")
        write(first, "1.png")
        first.finish()
        before = content(tmp_path)
        output = OutputFolder(tmp_path / "o", "predict", overwrite=True)
        for use in (lambda: write(output, name), lambda: output.place(name), lambda: output.check(name)):
            with pytest.raises(ValueError, match=r"the name .* (is|leads)"):
                use()
        assert content(tmp_path) == before

    def test_nothing_is_written_through_links(self, tmp_path: Path) -> None:
        (tmp_path / "outside").mkdir()
        output = OutputFolder(tmp_path / "o", "predict")
        write(output, "1.png")
        (tmp_path / "o" / "masks").symlink_to(tmp_path / "outside")
        with pytest.raises(ValueError, match="a link leads out of"):
            write(output, "masks/1.png")
        assert not list((tmp_path / "outside").iterdir())
        (tmp_path / "link").symlink_to("outside")  # the folder itself may be a link, as the user has named it
        write(OutputFolder(tmp_path / "link", "predict"), "masks/1.png")
        assert (tmp_path / "outside" / "masks" / "1.png").is_file()
