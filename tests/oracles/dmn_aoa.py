"""DMN-AOA from the formulas of the papers: one clip, one object and one proposal at a time, whole matrices, loops.

The relaxed matching follows the description of DMM-Net's released layer literally: rows are objects, columns are proposals, and
every iterate is kept in a list.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# The relaxed matching layer -------------------------------------------------------------------------------------------


def start(cost: Tensor) -> Tensor:
    """One-hot rows: every column is first left to its best rows, then each row takes the cheapest of what it has left."""
    reduced = torch.full_like(cost, cost.detach().max().item())
    for j in range(cost.shape[1]):
        for i in range(cost.shape[0]):
            if cost[i, j] == cost[:, j].min():
                reduced[i, j] = cost[i, j]
    x = torch.zeros_like(cost)
    for i in range(cost.shape[0]):
        x[i, int(reduced[i].argmin())] = 1
    return x


def positive(x: Tensor) -> Tensor:
    return x.clamp(min=0)


def columns(x: Tensor) -> Tensor:
    parts = []
    for j in range(x.shape[1]):
        column = x[:, j]
        excess = column.sum() - 1
        parts.append(column - excess / x.shape[0] if excess > 0 else column)
    return torch.stack(parts, dim=1)


def rows(x: Tensor) -> Tensor:
    return torch.stack([row - (row.sum() - 1) / x.shape[1] for row in x])


def relaxed_matching(similarity: Tensor, steps: int, sweeps: int, rate: float) -> dict[str, Tensor]:
    """``(n, m)`` similarities -> ``mean_pre``, ``mean_post`` and ``last``."""
    num_objects, num_proposals = similarity.shape
    if num_proposals <= num_objects:
        similarity = F.pad(similarity, (0, num_objects + 1 - num_proposals))
    cost = -similarity
    x = start(cost)
    stored, projected = [x], [x]
    corrections = [torch.zeros_like(cost) for _ in range(3)]
    for _ in range(steps):
        x = x - rate * cost
        stored.append(x)
        for _ in range(sweeps):
            for k, project in enumerate((positive, columns, rows)):
                corrected = x + corrections[k]
                x = project(corrected)
                corrections[k] = corrected - x
        projected.append(x)
    found = {"mean_pre": torch.stack(stored).mean(0), "mean_post": torch.stack(projected).mean(0), "last": x}
    return {name: value[:, :num_proposals] for name, value in found.items()}


# Alignment ------------------------------------------------------------------------------------------------------------


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.norm() * b.norm())


def align(target: Tensor, source: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """``(C, P)`` maps -> ``(P target, P source)`` weights and the ``(C, P)`` aligned source."""
    cells = target.shape[1]
    weights = torch.zeros(cells, source.shape[1])
    for i in range(cells):
        angles = torch.stack([cosine(target[:, i], source[:, j]) for j in range(source.shape[1])])
        weights[i] = torch.softmax(alpha * angles, 0)
    aligned = torch.stack([(source * weights[i]).sum(1) for i in range(cells)], 1)
    return weights, aligned


def aligned_similarity(template: Tensor, proposal: Tensor, alpha: float, pool: str, weights: Tensor | None = None) -> Tensor:
    _, aligned = align(template, proposal, alpha)
    if pool == "flat":
        return cosine(template.flatten(), aligned.flatten())
    cosines = torch.stack([cosine(template[:, i], aligned[:, i]) for i in range(template.shape[1])])
    return cosines.mean() if weights is None else (cosines * weights).sum() / weights.sum()


def move_blocks(weights: Tensor, source: Tensor, block: int) -> Tensor:
    """``(P target, P source)`` weights move the ``block x block`` tiles of a ``(C, H, W)`` map."""
    _, height, width = source.shape
    columns_of_tiles = width // block
    tiles = [source[:, y : y + block, x : x + block] for y in range(0, height, block) for x in range(0, width, block)]
    moved = torch.zeros_like(source)
    for i in range(len(tiles)):
        y, x = divmod(i, columns_of_tiles)
        for j, tile in enumerate(tiles):
            moved[:, y * block : (y + 1) * block, x * block : (x + 1) * block] += weights[i, j] * tile
    return moved


# The whole network ----------------------------------------------------------------------------------------------------


def conv(x: Tensor, layer) -> Tensor:
    """``(C, h, w)``."""
    return F.conv2d(x[None], layer.weight, layer.bias, padding=layer.padding)[0]


def norm(x: Tensor, layer) -> Tensor:
    return F.group_norm(x[None], layer.num_groups, layer.weight, layer.bias)[0]


def normed(x: Tensor, block) -> Tensor:
    return F.relu(norm(conv(x, block[0]), block[1]))


def project(x: Tensor, block) -> Tensor:
    return conv(F.relu(norm(conv(x, block[0]), block[1])), block[3])


def bilinear(x: Tensor, y: float, column: float) -> Tensor:
    """``(C, h, w)`` read at continuous cell coordinates as RoIAlign does: 0 beyond one cell outside, nearer the edge."""
    _, height, width = x.shape
    if y < -1 or y > height or column < -1 or column > width:
        return torch.zeros(x.shape[0])
    y, column = max(y, 0.0), max(column, 0.0)
    y0, x0 = min(int(y), height - 1), min(int(column), width - 1)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    fy = 0.0 if y0 == height - 1 else y - y0
    fx = 0.0 if x0 == width - 1 else column - x0
    top = x[:, y0, x0] * (1 - fx) + x[:, y0, x1] * fx
    bottom = x[:, y1, x0] * (1 - fx) + x[:, y1, x1] * fx
    return top * (1 - fy) + bottom * fy


def roi(x: Tensor, box: Tensor, grid: int, stride: int) -> Tensor:
    """Four samples a cell, averaged; ``(C, grid, grid)``."""
    x0, y0, x1, y1 = (float(v) / stride - 0.5 for v in box)
    cell_h, cell_w = (y1 - y0) / grid, (x1 - x0) / grid
    out = torch.zeros(x.shape[0], grid, grid)
    for i in range(grid):
        for j in range(grid):
            samples = [bilinear(x, y0 + (i + a) * cell_h, x0 + (j + b) * cell_w) for a in (0.25, 0.75) for b in (0.25, 0.75)]
            out[:, i, j] = torch.stack(samples).mean(0)
    return out


def embedding(offset: float, channels: int) -> Tensor:
    values = torch.zeros(channels)
    for i in range(0, channels, 2):
        angle = torch.tensor(offset) / 10000 ** (i / channels)
        values[i], values[i + 1] = torch.sin(angle), torch.cos(angle)
    return values[:, None, None]


def box_of(mask: Tensor) -> Tensor | None:
    y, x = torch.nonzero(mask > 0.5, as_tuple=True)
    if len(y) == 0:
        return None
    return torch.tensor([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()


def pool(x: Tensor, size: int) -> Tensor:
    return F.avg_pool2d(x[None], size)[0]


def residual(x: Tensor, block) -> Tensor:
    return x + norm(conv(F.relu(norm(conv(F.relu(x), block.conv1), block.norm1)), block.conv2), block.norm2)


def object_features(network, pyramid: list[Tensor], box: Tensor) -> Tensor:
    parts = [roi(x, box, network.objects.options.grid, stride) for x, stride in zip(pyramid, (4, 8, 16), strict=True)]
    return normed(torch.cat(parts), network.objects.fuse)


def refine(network, pyramid: list[Tensor], references: list[dict], coarse: Tensor) -> Tensor:
    refiner, decoder = network.refiner, network.refiner.decoder
    query = project(pyramid[2], refiner.query)
    moved = []
    for reference in references:
        source = project(reference["pyramid"][2], refiner.reference)
        weights, _ = align(query.flatten(1), source.flatten(1), refiner.sharpness.value)
        levels = [move_blocks(weights, x, block) for x, block in zip(reference["pyramid"], (4, 2, 1), strict=True)]
        moved.append((levels, move_blocks(weights, reference["mask"][None], 4)))
    masks = torch.cat([moved[0][1], moved[1][1], coarse[None]])
    fused = {}
    for level, (fusion, size) in enumerate(((decoder.fuse4, 1), (decoder.fuse8, 2), (decoder.fuse16, 4))):
        joined = torch.cat([pyramid[level], moved[0][0][level], moved[1][0][level], pool(masks, size)])
        fused[level] = residual(norm(conv(joined, fusion.blend), fusion.norm), fusion.block)

    def double(x: Tensor) -> Tensor:
        return F.interpolate(x[None], scale_factor=2, mode="bilinear", align_corners=False)[0]

    x = residual(fused[1] + double(fused[2]), decoder.block8)
    x = residual(fused[0] + double(x), decoder.block4)
    logits = F.interpolate(conv(F.relu(x), decoder.predictor)[None], scale_factor=4, mode="bilinear", align_corners=False)[0]
    return logits.softmax(0)[1]


def propagate(network, frames: Tensor, given: dict[int, dict[int, Tensor]], pasted: list[Tensor], boxes: list[Tensor]) -> dict:
    """Foreground ``(H, W)`` after aggregation of every (frame, object) that is predicted; every frame is remembered.

    Args:
        frames: ``(T, 3, H, W)``, sides multiples of 16.
        given: frame -> object -> binary mask ``(H, W)``.
        pasted: ``(K, H, W)`` masks of the proposals of every frame.
        boxes: ``(K, 4)`` of every frame.
    """
    objects, store, matcher = network.objects.options, network.dynamic_memory, network.coarse_masks.matcher
    solver = network.coarse_masks.options.assignment
    channels = objects.channels
    height, width = frames.shape[2:]
    states: dict[int, dict] = {}
    predicted = {}
    last = None
    for t, image in enumerate(frames):
        raw = network.backbone(image[None])
        pyramid = [normed(x[0], layer) for x, layer in zip((raw.s4, raw.s8, raw.s16), network.reduce, strict=True)]
        proposals = [project(object_features(network, pyramid, box), matcher.proposal) for box in boxes[t]]
        names = list(states)
        similarity = torch.zeros(len(names), len(proposals))
        for row, n in enumerate(names):
            state = states[n]
            seen = object_features(network, pyramid, state["box"]) + embedding(float(t - state["start"]), channels)
            query = conv(seen, store.query).flatten(1)
            keys = torch.cat([key.flatten(1) for key, _ in state["memory"]], 1)
            values = torch.cat([value.flatten(1) for _, value in state["memory"]], 1)
            weights = torch.softmax(query.t() @ keys / (channels / 4) ** 0.5, dim=1)
            template = (values @ weights.t()).view(channels, objects.grid, objects.grid)
            target = project(template, matcher.template).flatten(1)
            for j, proposal in enumerate(proposals):
                similarity[row, j] = aligned_similarity(target, proposal.flatten(1), matcher.sharpness.value, "mean")
        odds = {}
        if names:
            assignment = relaxed_matching(similarity, solver.eval_steps, solver.sweeps, solver.step_size)["mean_pre"]
            for row, n in enumerate(names):
                if len(proposals):
                    j = int(assignment[row].argmax())
                    coarse = (assignment[row, j] * pool(pasted[t][j][None], 4)[0]).clamp(0, 1)
                else:
                    coarse = states[n]["mask"]
                first = states[n]["first"]
                previous = {"pyramid": last, "mask": states[n]["mask"]}
                odds[n] = refine(network, pyramid, [first, previous], coarse)
        new = given.get(t, {})
        soft = aggregate(odds)
        if new:
            covered = torch.stack(list(new.values())).amax(0) > 0.5
            again = {n: p * ~covered for n, p in soft.items()} | new
            soft = aggregate(again)
        for n, mask in soft.items():
            if n in odds:
                predicted[t, n] = mask
            if n in new:
                states[n] = {"start": t, "memory": [], "box": torch.tensor([0.0, 0, width, height])}
            state = states[n]
            state["mask"] = pool(mask[None], 4)[0]
            if n in new:
                state["first"] = {"pyramid": pyramid, "mask": state["mask"]}
            box = box_of(mask)
            state["box"] = state["box"] if box is None else box
            if box is not None:
                seen = object_features(network, pyramid, state["box"]) + embedding(float(t - state["start"]), channels)
                joint = torch.cat([seen, roi(state["mask"][None], state["box"], objects.grid, 4)])
                state["memory"].append((conv(joint, store.key), conv(joint, store.value)))
        last = pyramid
    return predicted


def aggregate(foreground: dict[int, Tensor]) -> dict[int, Tensor]:
    """Soft aggregation with the product of the backgrounds."""
    if not foreground:
        return {}

    def odds(p: Tensor) -> Tensor:
        p = p.double().clamp(1e-7, 1 - 1e-7)
        return p / (1 - p)

    background = torch.ones_like(next(iter(foreground.values()))).double()
    for p in foreground.values():
        background = background * (1 - p.double().clamp(1e-7, 1 - 1e-7))
    total = odds(background) + sum(odds(p) for p in foreground.values())
    return {n: (odds(p) / total).float() for n, p in foreground.items()}
