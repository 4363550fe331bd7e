"""DMN-AOA from the formulas of the papers: one clip, one object and one proposal at a time, whole matrices, loops.

The relaxed matching follows the description of DMM-Net's released layer literally: rows are objects, columns are proposals, and
every iterate is kept in a list.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

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
    return pooled_cosines(template, align(template, proposal, alpha)[1], pool, weights)


def pooled_cosines(template: Tensor, proposal: Tensor, pool: str, weights: Tensor | None = None) -> Tensor:
    """``(C, P)`` maps, compared position by position."""
    if pool == "flat":
        return cosine(template.flatten(), proposal.flatten())
    cosines = torch.stack([cosine(template[:, i], proposal[:, i]) for i in range(template.shape[1])])
    return cosines.mean() if weights is None else (cosines * weights).sum() / weights.sum()


def strongest(weights: Tensor, count: int | None) -> Tensor:
    """``(P target, P source)`` weights: in every row, all but the largest ``count`` become 0, and the rest sums to 1."""
    kept = torch.zeros_like(weights)
    for i, row in enumerate(weights):
        chosen = sorted(range(len(row)), key=lambda j: -float(row[j]))[:count]
        for j in chosen:
            kept[i, j] = row[j] / sum(row[k] for k in chosen)
    return kept


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


def frame_features(network, pyramid: list[Tensor]) -> Tensor:
    parts = [pool(x, size) for x, size in zip(pyramid, (4, 2, 1), strict=True)]
    return normed(torch.cat(parts), network.objects.fuse)


def paste(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """``(K, m, m)`` masks inside boxes -> ``(K, H, W)``, as torchvision pastes them, one after the other."""
    if len(boxes) == 0:
        return torch.zeros(0, height, width)
    return paste_masks_in_image(masks[:, None], boxes, (height, width), padding=1)[:, 0]


def template_of(network, state: dict, pyramid: list[Tensor], offset: float) -> Tensor:
    """``(C, g, g)``: what an object should look like now."""
    store, channels, grid = network.dynamic_memory, network.objects.options.channels, network.objects.options.grid
    if network.template == "first_frame":
        return state["template"]
    query = conv(object_features(network, pyramid, state["box"]) + embedding(offset, channels), store.query).flatten(1)
    keys = torch.cat([key.flatten(1) for key, _ in state["memory"]], 1)
    values = torch.cat([value.flatten(1) for _, value in state["memory"]], 1)
    weights = torch.softmax(query.t() @ keys / (channels / 4) ** 0.5, dim=1)
    return (values @ weights.t()).view(channels, grid, grid)


def weights_of_proposals(network, similarity: Tensor) -> Tensor:
    """``(n, m)`` similarities -> the weights of the proposals in the coarse masks."""
    solver = network.coarse_masks.options.assignment
    steps = solver.train_steps if network.training else solver.eval_steps
    weights = relaxed_matching(similarity, steps, solver.sweeps, solver.step_size)[solver.output]
    kept = torch.zeros_like(weights)
    for row, of_object in enumerate(weights):
        for j, weight in enumerate(of_object):
            if not network.training and solver.eval_kept == "best":
                kept[row, j] = weight if j == int(of_object.argmax()) else 0
            else:
                kept[row, j] = weight if weight > 0.01 else 0
    return kept


def refine(network, pyramid: list[Tensor], references: list[dict], coarse: Tensor) -> Tensor:
    refiner, decoder = network.refiner, network.refiner.decoder
    query = project(pyramid[2], refiner.query)
    moved = []
    for reference in references:
        source = project(reference["pyramid"][2], refiner.reference)
        weights = strongest(align(query.flatten(1), source.flatten(1), refiner.sharpness.value)[0], refiner.top_k)
        levels = [move_blocks(weights, x, block) for x, block in zip(reference["pyramid"], (4, 2, 1), strict=True)]
        moved.append((levels, move_blocks(weights, reference["mask"][None], 4)))
    masks = torch.cat([moved[0][1], moved[1][1], coarse[None]])
    fused = {}
    for level, (fusion, size) in enumerate(((decoder.fuse4, 1), (decoder.fuse8, 2), (decoder.fuse16, 4))):
        joined = torch.cat([pyramid[level], moved[0][0][level], moved[1][0][level], pool(masks, size)])
        fused[level] = residual(norm(conv(joined, fusion.blend), fusion.norm), fusion.block)

    x = residual(fused[1] + enlarge(fused[2], 2), decoder.block8)
    x = residual(fused[0] + enlarge(x, 2), decoder.block4)
    return enlarge(conv(F.relu(x), decoder.predictor), 4).softmax(0)[1]


def enlarge(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x[None], scale_factor=factor, mode="bilinear", align_corners=False)[0]


def propagate(
    network, frames: Tensor, given: dict[int, dict[int, Tensor]], masks: list[Tensor], boxes: list[Tensor]
) -> dict[tuple[int, int], dict[str, Tensor]]:
    """What is computed of every object in every frame that is predicted; every frame is remembered.

    Args:
        frames: ``(T, 3, H, W)``, sides multiples of 16.
        given: frame -> object -> binary mask ``(H, W)``.
        masks: ``(K, m, m)`` masks of the proposals of every frame, inside their boxes.
        boxes: ``(K, 4)`` of every frame.

    Returns:
        (frame, object) -> ``foreground`` ``(H, W)`` after aggregation, ``coarse`` ``(H / 4, W / 4)``, ``template``, and with
        proposals ``similarity`` and ``assignment`` ``(K,)`` and ``pasted`` ``(K, H / 4, W / 4)``.
    """
    objects, store, head = network.objects.options, network.dynamic_memory, network.coarse_masks
    height, width = frames.shape[2:]
    states: dict[int, dict] = {}
    predicted: dict[tuple[int, int], dict[str, Tensor]] = {}
    last = None
    for t, image in enumerate(frames):
        raw = network.backbone(image[None])
        pyramid = [normed(x[0], layer) for x, layer in zip((raw.s4, raw.s8, raw.s16), network.reduce, strict=True)]
        found: dict[int, dict[str, Tensor]] = {n: {} for n in states}
        fine: dict[int, Tensor] = {}
        for n, state in states.items():
            template = template_of(network, state, pyramid, float(t - state["start"]))
            if network.needs_proposals:
                found[n]["template"] = project(template, head.matcher.template)
            else:
                inner = conv(normed(template, head.decode[0]), head.decode[1]).sigmoid()
                fine[n] = paste(inner, state["box"][None], height, width)[0]
        if network.needs_proposals and states:
            pasted = paste(masks[t], boxes[t], height, width)
            small = torch.stack([pool(mask[None], 4)[0] for mask in pasted]) if len(pasted) else pasted
            proposals = [project(object_features(network, pyramid, box), head.matcher.proposal) for box in boxes[t]]
            similarity = torch.zeros(len(states), len(proposals))
            for row, n in enumerate(states):
                for j, proposal in enumerate(proposals):
                    similarity[row, j] = compare(network, found[n]["template"].flatten(1), proposal.flatten(1))
            assignment = weights_of_proposals(network, similarity)
            for row, n in enumerate(states):
                found[n] |= {"similarity": similarity[row], "assignment": assignment[row], "pasted": small}
                weighted = sum((w * mask for w, mask in zip(assignment[row], pasted, strict=True)), torch.zeros(height, width))
                fine[n] = weighted if len(proposals) else enlarge(states[n]["mask"][None], 4)[0]
        odds = {}
        for n, state in states.items():
            coarse = pool(fine[n][None], 4)[0]
            if network.needs_proposals and len(boxes[t]) == 0:
                coarse = state["mask"]
            found[n]["coarse"] = coarse.clamp(0, 1)
            previous = {"pyramid": last, "mask": state["mask"]}
            odds[n] = (
                fine[n].clamp(0.01, 0.99)
                if network.refiner is None
                else refine(network, pyramid, [state["first"], previous], found[n]["coarse"])
            )
        new = given.get(t, {})
        soft = aggregate(odds)
        if new:
            covered = torch.stack(list(new.values())).amax(0) > 0.5
            again = {n: p * ~covered for n, p in soft.items()} | new
            soft = aggregate(again)
        for n, mask in soft.items():
            if n in odds:
                predicted[t, n] = {**found[n], "foreground": mask}
            if n in new:
                states[n] = {"start": t, "memory": [], "box": torch.tensor([0.0, 0, width, height])}
            state = states[n]
            state["mask"] = pool(mask[None], 4)[0]
            if n in new:
                state["first"] = {"pyramid": pyramid, "mask": state["mask"]}
            box = box_of(mask)
            state["box"] = state["box"] if box is None else box
            if box is None:
                continue
            time = embedding(float(t - state["start"]), objects.channels)
            if network.memory_features == "frame":
                joint = torch.cat([frame_features(network, pyramid) + time, pool(state["mask"][None], 4)])
            else:
                inner = roi(state["mask"][None], state["box"], objects.grid, 4)
                joint = torch.cat([object_features(network, pyramid, state["box"]) + time, inner])
            if network.template == "first_frame":
                state.setdefault("template", conv(joint, store.value))
            else:
                state["memory"].append((conv(joint, store.key), conv(joint, store.value)))
        last = pyramid
    return predicted


def compare(network, template: Tensor, proposal: Tensor) -> Tensor:
    """Similarity of a projected template and a projected proposal, both ``(C, P)``."""
    options, matcher = network.coarse_masks.options, network.coarse_masks.matcher
    if options.comparison == "pooled":
        return cosine(template.mean(1), proposal.mean(1))
    if options.comparison == "in_place":
        return pooled_cosines(template, proposal, options.pool)
    return aligned_similarity(template, proposal, matcher.sharpness.value, options.pool)


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
