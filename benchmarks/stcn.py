"""STCN's seconds a frame beside a plain formulation: ``python -m benchmarks.stcn --objects 1 3 --threads 2``.

The plain one is how the released code is described to work: the features of a frame are repeated for every object, the channels
of frame, masks and features concatenated, tensors contiguous in the default order, the top-k affinity written out as a matrix of
memory by query pixels, of mostly zeros, and multiplied with the values. It takes the parameters of our network and computes the
same masks. Both take turns, so that the load of the machine meets both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracles import stcn as plain
from vos_lightning.app.benchmark.measure import synthetic_video
from vos_lightning.mask_ops import IMAGENET_MEAN, IMAGENET_STD, masks_from_label_map
from vos_lightning.networks.stcn import STCN
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.propagation.policies import EveryKth
from vos_lightning.propagation.step import Propagation
from vos_lightning.structures import VideoSample

EVERY = 5


def plain_frames(network: STCN, frames: list[Tensor], label_map: Tensor, count: int) -> Iterator[Tensor]:
    """Label map of every frame, object slots as given."""
    mean, deviation = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    pad = plain.padding(label_map.shape)
    keys: list[Tensor] = []
    values: list[Tensor] = []
    for t, frame in enumerate(frames):
        image = F.pad(((frame / 255 - mean) / deviation)[None], pad)
        pyramid = plain.resnet(image, network.key_encoder, network.key_encoder.conv1.weight)
        key, query_value = (plain.conv(pyramid[2], layer) for layer in (network.projection.key, network.projection.value))
        if t == 0:
            masks = F.pad(masks_from_label_map(label_map[None], count)[0].float(), pad)
            logits = torch.cat([1 - masks.sum(dim=0, keepdim=True), masks])
        else:
            readout = plain_read(torch.cat(keys, dim=1), torch.cat(values, dim=2), key[0].flatten(1), network.top_k)
            repeated = [x.expand(count, -1, -1, -1) for x in pyramid]
            decoded = plain.decode(
                repeated, readout.unflatten(2, key.shape[-2:]), query_value.expand(count, -1, -1, -1), network.decoder
            )
            logits = plain.aggregate(list(decoded[:, 0].sigmoid()))
            masks = logits[1:]
        if t % EVERY == 0:
            others = masks.sum(dim=0, keepdim=True) - masks
            shared = pyramid[2].expand(count, -1, -1, -1)
            value = plain.value(image.expand(count, -1, -1, -1), [masks, others], shared, network.value_encoder)
            keys.append(key[0].flatten(1))
            values.append(value.flatten(2))
        yield plain.crop(logits, pad).argmax(dim=0).byte()


def plain_read(keys: Tensor, values: Tensor, query: Tensor, top_k: int | None) -> Tensor:
    """``(C, S), (N, V, S), (C, Q) -> (N, V, Q)``."""
    affinity = (2 * keys.t() @ query - keys.square().sum(dim=0)[:, None]) / keys.shape[0] ** 0.5
    if top_k is None or top_k >= len(affinity):
        weights = affinity.softmax(dim=0)
    else:
        best, index = affinity.topk(top_k, dim=0)
        weights = torch.zeros_like(affinity).scatter_(0, index, best.softmax(dim=0))
    return values @ weights


def our_frames(network: STCN, video: VideoSample) -> Iterator[Tensor]:
    """The same by the streaming engine."""
    for prediction in InferenceEngine(network, Propagation(EveryKth(EVERY), "product")).run(video):
        yield prediction.label_map


def timed(frames: Callable[[], Iterator[Tensor]], skipped: int = 1) -> tuple[list[float], list[Tensor]]:
    """Seconds of every frame after the first ``skipped``, and all label maps."""
    times, results = [], []
    with torch.inference_mode():
        iterator = frames()
        while True:
            start = time.perf_counter()
            try:
                results.append(next(iterator))
            except StopIteration:
                return times[skipped:], results
            times.append(time.perf_counter() - start)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--size", type=int, nargs=2, default=[480, 854], metavar=("H", "W"))
    parser.add_argument("--frames", type=int, default=11, help="of a round; every fifth is remembered: %(default)s")
    parser.add_argument("--rounds", type=int, default=2, help="turns of either: %(default)s")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    contiguous = STCN.published(None, copier_start=True).eval()
    ours = STCN.published(None).eval()
    ours.load_state_dict(contiguous.state_dict())
    ours.to(memory_format=torch.channels_last)
    print(f"{options.size[0]} x {options.size[1]}, a memory frame every {EVERY}th, {options.threads} threads, float32")
    for count in options.objects:
        video = synthetic_video(tuple(options.size), options.frames, count)
        # Bound as defaults: closures would see the next round's.
        runs = {
            "plain": lambda v=video, n=count: plain_frames(contiguous, v.frames, v.annotations[0], n),
            "ours": lambda v=video: our_frames(ours, v),
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        maps = {}
        for _ in range(options.rounds):
            for name, run in runs.items():
                seconds, maps[name] = timed(run)
                times[name] += seconds
        mean = {name: statistics.mean(seconds) for name, seconds in times.items()}
        equal = torch.stack([a == b for a, b in zip(maps["plain"], maps["ours"], strict=True)]).float().mean().item()
        print(
            f"{count} objects: plain {mean['plain']:.2f} s a frame, ours {mean['ours']:.2f}, "
            f"ratio {mean['ours'] / mean['plain']:.2f}; {100 * equal:.2f} % of the pixels alike"
        )


if __name__ == "__main__":
    main()
