"""Synthetic videos as a data set, for tests, demonstrations and first trainings without a download."""

from __future__ import annotations

import numpy as np
import torch

from data_modules.base import Loading, VOSDataModule
from data_modules.clips.dataset import ClipSource, ItemNames
from data_modules.clips.recipe import ClipRecipe
from data_modules.clips.sampling import Stream, choose_by_recipe, sample_generator
from data_modules.clips.transforms import RawClip
from data_modules.datasets.scenes import Scene, SceneRecipe
from data_modules.videos import LazyVideos
from vos_lightning.structures import VideoSample

TRAIN, VAL, TEST = 0, 1, 2
DEFAULT_SCENE = SceneRecipe()
SYNTHETIC_RECIPE = ClipRecipe(num_frames=4, short_side=None, crop="none", max_objects=2)


class SyntheticClips(ClipSource):
    """Training clips of synthetic scenes; only the frames of the clip are rendered.

    Args:
        num_videos: number of scenes of the split.
        scene: appearance of the scenes.
        scene_seed: seed of the scenes.
    """

    def __init__(self, num_videos: int, scene: SceneRecipe = DEFAULT_SCENE, scene_seed: int = 0) -> None:
        self.num_videos = num_videos
        self.scene = scene
        self.scene_seed = scene_seed

    def __len__(self) -> int:
        return self.num_videos

    def names(self, index: int) -> ItemNames:
        """Names of a scene and its frames."""
        return ItemNames(f"synthetic-train-{index:05d}", dict(enumerate(_frame_names(self.scene))))

    def draw(self, index: int, rng: np.random.Generator, recipe: ClipRecipe) -> RawClip:
        """Render a clip of scene ``index``; other frames are drawn if the first one shows no object."""
        scene = make_scene(self.scene_seed, TRAIN, index, self.scene)
        for _ in range(5):
            times = choose_by_recipe(rng, self.scene.num_frames, recipe)
            frames, label_maps = scene.render(times)
            if np.count_nonzero(label_maps[0]) >= self.scene.min_pixels:
                break
        return RawClip(frames, label_maps, self.names(index).name, times)


class SyntheticVideos(LazyVideos):
    """Whole synthetic videos, rendered when they are accessed. Every object is given in the first frame that shows it.

    Args:
        num_videos: number of scenes of the split.
        split: ``VAL`` or ``TEST`` of this module; splits share no scene.
        scene: appearance of the scenes.
        scene_seed: seed of the scenes.
    """

    def __init__(self, num_videos: int, split: int = VAL, scene: SceneRecipe = DEFAULT_SCENE, scene_seed: int = 0) -> None:
        self.num_videos = num_videos
        self.split = split
        self.scene = scene
        self.scene_seed = scene_seed

    def __len__(self) -> int:
        return self.num_videos

    def __getitem__(self, index: int) -> VideoSample:
        index = range(self.num_videos)[index]
        scene = make_scene(self.scene_seed, self.split, index, self.scene)
        num_frames = self.scene.num_frames
        frames, label_maps = scene.render(range(num_frames))
        first_frames: dict[int, int] = {}
        for object_id in range(1, scene.num_objects + 1):
            shown = np.count_nonzero(label_maps == object_id, axis=(1, 2)) >= self.scene.min_pixels
            first = int(shown.argmax()) if shown.any() else num_frames
            label_maps[:first][label_maps[:first] == object_id] = 0
            if first < num_frames:
                first_frames[object_id] = first
        targets = torch.from_numpy(label_maps)
        annotations = {}
        for first in sorted(set(first_frames.values())):
            introduced = torch.tensor([i for i, f in first_frames.items() if f == first], dtype=torch.uint8)
            annotations[first] = targets[first] * torch.isin(targets[first], introduced)
        return VideoSample(
            name=f"synthetic-{('train', 'val', 'test')[self.split]}-{index:05d}",
            frames=tuple(torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))),
            annotations=annotations,
            targets=dict(enumerate(targets)),
            object_ids=tuple(first_frames),
            original_size=(self.scene.height, self.scene.width),
            frame_names=_frame_names(self.scene),
        )


SYNTHETIC_LOADING = Loading(num_workers=0)


class SyntheticDataModule(VOSDataModule):
    """Synthetic scenes.

    Args:
        num_train_videos: number of scenes of the training split.
        num_val_videos: number of scenes of the validation split.
        num_test_videos: number of scenes of the test split.
        scene: appearance of the scenes.
        scene_seed: seed of the scenes, independent of ``seed``, so that evaluation does not change with the run.
        recipe: how clips are made; the default takes whole frames.
        loading: batches, workers and seed, see :class:`Loading`.
    """

    def __init__(
        self,
        num_train_videos: int = 1000,
        num_val_videos: int = 8,
        num_test_videos: int = 12,
        scene: SceneRecipe = DEFAULT_SCENE,
        scene_seed: int = 0,
        recipe: ClipRecipe = SYNTHETIC_RECIPE,
        loading: Loading = SYNTHETIC_LOADING,
    ) -> None:
        super().__init__(loading, recipe)
        self.num_train_videos = num_train_videos
        self.num_val_videos = num_val_videos
        self.num_test_videos = num_test_videos
        self.scene = scene
        self.scene_seed = scene_seed

    def clip_source(self) -> SyntheticClips:
        """Clips of the training scenes."""
        return SyntheticClips(self.num_train_videos, self.scene, self.scene_seed)

    def val_videos(self) -> SyntheticVideos:
        """Validation scenes."""
        return SyntheticVideos(self.num_val_videos, VAL, self.scene, self.scene_seed)

    def test_videos(self) -> SyntheticVideos:
        """Test scenes."""
        return SyntheticVideos(self.num_test_videos, TEST, self.scene, self.scene_seed)


def _frame_names(scene: SceneRecipe) -> tuple[str, ...]:
    return tuple(f"{t:05d}" for t in range(scene.num_frames))


def make_scene(scene_seed: int, split: int, index: int, recipe: SceneRecipe) -> Scene:
    """Scene ``index`` of a split; always the same for the same numbers."""
    return Scene(sample_generator(scene_seed, split, index, Stream.SCENE), recipe)
