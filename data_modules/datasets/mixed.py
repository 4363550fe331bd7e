"""Several data sets trained together."""

from __future__ import annotations

from data_modules.base import DEFAULT_LOADING, Loading, VOSDataModule
from data_modules.clips.dataset import ClipSource
from data_modules.clips.recipe import ClipRecipe
from vos_lightning.structures import LazySequence, VideoSample


class MixedDataModule(VOSDataModule):
    """Clips of several data modules, and the videos of one of them or of another one.

    Args:
        train: data modules whose clips are concatenated. Their recipes must agree in everything that decides the shape of a
            batch.
        repeats: number of times that each of them is listed, e.g. 5 for DAVIS beside YouTube-VOS.
        evaluation: data module whose videos are validated, tested and predicted.
        recipe: recipe of every member, with gaps in frames of the video; None keeps each member's own recipe, with gaps in stored
            frames.
        frame_steps: for every member, the number n if every n-th frame is stored (1 for DAVIS, 5 for YouTube-VOS); the gaps of
            ``recipe`` are divided by it. None means 1 for all.
        loading: batches, workers and seed, see :class:`Loading`.

    Raises:
        ValueError: the lists differ in length, or the recipes do not agree.
    """

    def __init__(
        self,
        train: list[VOSDataModule],
        repeats: list[int],
        evaluation: VOSDataModule,
        recipe: ClipRecipe | None = None,
        frame_steps: list[int] | None = None,
        loading: Loading = DEFAULT_LOADING,
    ) -> None:
        if not train or len(train) != len(repeats) or min(repeats) < 1:
            raise ValueError(f"repeats must give a positive number for each of the {len(train)} data modules in train: {repeats}")
        steps = frame_steps if frame_steps is not None else [1] * len(train)
        if len(steps) != len(train) or min(steps) < 1:
            raise ValueError(
                f"frame_steps must give a positive number for each of the {len(train)} data modules in train: {steps}"
            )
        if recipe is None and frame_steps is not None:
            raise ValueError("frame_steps divide the gaps of recipe: set recipe, or leave them out")
        self.recipes = [
            member.recipe if recipe is None else recipe.in_steps_of(s) for member, s in zip(train, steps, strict=True)
        ]
        for name in ("num_frames", "crop", "crop_size", "max_objects", "swap_probability"):
            values = [getattr(each, name) for each in self.recipes]
            if name == "crop":
                values = [value == "none" for value in values]
            if len(set(values)) > 1:
                raise ValueError(f"recipe.{name} must be the same for all data modules in train, not {values}")
        super().__init__(loading, self.recipes[0])
        self.train_modules = train
        self.shared_recipe = recipe
        self.repeats = repeats
        self.evaluation = evaluation

    def clip_parts(self) -> list[tuple[ClipSource, ClipRecipe]]:
        """Sources and recipes of all members, repeated."""
        parts: list[tuple[ClipSource, ClipRecipe]] = []
        for member, recipe, count in zip(self.train_modules, self.recipes, self.repeats, strict=True):
            own = member.clip_parts()
            parts += (own if self.shared_recipe is None else [(source, recipe) for source, _ in own]) * count
        return parts

    def clip_source(self) -> ClipSource:
        """Not available, as there are several sources: see :meth:`clip_parts`."""
        raise NotImplementedError("a mixture has several sources: use clip_parts")

    def val_videos(self) -> LazySequence[VideoSample]:
        """Validation videos of ``evaluation``."""
        return self.evaluation.val_videos()

    def test_videos(self) -> LazySequence[VideoSample]:
        """Test videos of ``evaluation``."""
        return self.evaluation.test_videos()
