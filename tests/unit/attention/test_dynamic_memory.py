import math

import pytest
import torch
import torch.nn.functional as F

from tests.tolerances import assert_close
from vos_lightning.attention.dynamic_memory import DynamicMemory, Entry

B, N, C, G = 2, 2, 8, 3


def conv(x: torch.Tensor, layer) -> torch.Tensor:
    return F.conv2d(x[None], layer.weight, layer.bias, padding=1)[0]


def remembered(store: DynamicMemory) -> list[Entry]:
    """Two frames; the second object of the first clip is not in the second of them, and the last object is in none."""
    visible = torch.tensor([[[True, True], [True, False]], [[True, False], [False, False]]])
    return [store.write(torch.randn(B, N, C, G, G), torch.rand(B, N, G, G), seen) for seen in visible]


def stacked(entries: list[Entry]) -> Entry:
    cells = [[x.flatten(-2) for x in (entry.key, entry.value, entry.masks, entry.visible)] for entry in entries]
    return Entry(*(torch.cat(parts, dim=-1) for parts in zip(*cells, strict=True)))


def test_an_object_is_written_with_its_mask():
    store = DynamicMemory(C)
    seen, masks = torch.randn(B, N, C, G, G + 1), torch.rand(B, N, G, G + 1)
    visible = torch.tensor([[True, False], [False, True]])
    entry = store.write(seen, masks, visible)
    for b in range(B):
        for n in range(N):
            joint = torch.cat([seen[b, n], masks[b, n, None]])
            assert_close(entry.key[b, n], conv(joint, store.key))
            assert_close(entry.value[b, n], conv(joint, store.value))
            assert torch.equal(entry.masks[b, n], masks[b, n])
            assert entry.visible[b, n].eq(visible[b, n]).all()
            assert entry.visible[b, n].shape == masks[b, n].shape


@torch.no_grad()
def test_a_template_is_read_cell_by_cell_from_the_object_itself():
    """Keys have a quarter of the channels; frames without the object, and cells that it may not read, are not read."""
    store = DynamicMemory(C)
    memory = stacked(remembered(store))
    readable = torch.rand(B, N, memory.masks.shape[2]) < 0.7
    seen = torch.randn(B, N, C, G, G)
    templates, shares = store.read(seen, memory, readable)
    for b in range(B):
        for n in range(N):
            query = conv(seen[b, n], store.query)
            cells = [s for s in range(2 * G * G) if readable[b, n, s] and memory.visible[b, n, s]]
            for y in range(G):
                for x in range(G):
                    scores = [float(memory.key[b, n, :, s] @ query[:, y, x]) / math.sqrt(C // 4) for s in cells]
                    total = sum(map(math.exp, scores))
                    weights = [math.exp(score) / total for score in scores]
                    value, share = torch.zeros(C), 0.0
                    for weight, s in zip(weights, cells, strict=True):
                        value += weight * memory.value[b, n, :, s]
                        share += weight * float(memory.masks[b, n, s])
                    assert_close(templates[b, n, :, y, x], value)
                    assert float(shares[b, n, y, x]) == pytest.approx(share, abs=1e-5)


def test_templates_of_the_first_frame_have_no_keys():
    store = DynamicMemory(C, "first_frame")
    assert store.key is None
    assert store.query is None
    seen, masks = torch.randn(1, 1, C, G, G), torch.rand(1, 1, G, G)
    entry = store.write(seen, masks, torch.tensor([[True]]))
    assert_close(entry.value[0, 0], conv(torch.cat([seen[0, 0], masks[0, 0, None]]), store.value))
    assert torch.equal(entry.key, entry.value[:, :, :1])
    with pytest.raises(Exception, match="template"):
        DynamicMemory(C, "last_frame")


def test_sizes_are_the_papers():
    store = DynamicMemory()
    assert [tuple(layer.weight.shape) for layer in (store.key, store.value, store.query)] == [
        (128, 513, 3, 3), (512, 513, 3, 3), (128, 512, 3, 3),
    ]  # fmt: skip


@torch.no_grad()
def test_masks_take_the_type_of_the_features():
    store = DynamicMemory(C).bfloat16()
    entry = store.write(torch.randn(1, 1, C, G, G).bfloat16(), torch.rand(1, 1, G, G), torch.tensor([[True]]))
    readable = torch.ones(1, 1, G * G, dtype=torch.bool)
    templates, shares = store.read(torch.randn(1, 1, C, G, G).bfloat16(), stacked([entry]), readable)
    assert entry.value.dtype == templates.dtype == shares.dtype == torch.bfloat16
