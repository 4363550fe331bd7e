"""Parts that residual networks share."""

import pytest
import torch
import torch.nn.functional as F

from vos_lightning.backbones.residual import merge_objects


@pytest.mark.parametrize("objects", [1, 3])
@pytest.mark.parametrize("training", [False, True])
def test_merged_objects_are_the_same_rows(objects, training):
    rows = torch.randn(objects, 5, 6, 7).to(memory_format=torch.channels_last)
    with torch.set_grad_enabled(training):
        merged = merge_objects(rows.unflatten(0, (1, objects)))
        assert torch.equal(merged, rows)
        if not training:  # layers that only look at strides keep the order
            assert F.interpolate(merged, scale_factor=2).is_contiguous(memory_format=torch.channels_last)
