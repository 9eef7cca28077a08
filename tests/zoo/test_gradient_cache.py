"""Accumulation with two passes has the gradient of the large batch, and the loss of it."""

import copy
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import forks
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sslzoo import backbones
from sslzoo.gradient_cache import Embedder, two_passes
from sslzoo.methods import moco_v3, simclr
from sslzoo.run_folder import RunFolder
from sslzoo.training import set_up, train
from sslzoo.training_config import TrainingConfig

SIZE, IMAGES, PARTS = 8, 12, 3


def vit():
    return backbones.build("vit_micro_p4", image_size=SIZE, channels=3)


def make(name):
    """A method without batch norm in float64, whose batches do not know of one another."""
    if name == "simclr":
        method = simclr.SimCLR(vit(), simclr.Config(head_bn=False))
    else:
        method = moco_v3.MoCoV3(vit(), moco_v3.Config(head_width=16, head_features=8))
        for head in (method.projector, method.predictor, method.key_encoder["projector"]):
            for i, layer in enumerate(head):
                if isinstance(layer, nn.BatchNorm1d):
                    head[i] = nn.Identity()
    return method.double().train()


def gradients(method):
    return {n: p.grad for n, p in method.named_parameters() if p.grad is not None}


def cached(method, views, seed=lambda number: None):
    parts = list(zip(*(view.chunk(PARTS) for view in views), strict=True))
    return two_passes(Embedder(method), method.contrast, [list(part) for part in parts], 0,
                      backward=torch.Tensor.backward, seed=seed, no_sync=nullcontext)  # fmt: skip


@pytest.mark.parametrize("name", ["simclr", "moco_v3"])
def test_two_passes_have_the_gradient_of_the_large_batch(name):
    method = make(name)
    views = [torch.randn(IMAGES, 3, SIZE, SIZE, dtype=torch.float64) for _ in range(2)]
    whole, parts = method, copy.deepcopy(method)
    loss = whole(views, 0)["loss"]
    loss.backward()
    outputs = cached(parts, views)
    torch.testing.assert_close(outputs["loss"], loss.detach(), rtol=1e-6, atol=0)
    one, two = gradients(whole), gradients(parts)
    assert one.keys() == two.keys() and max(g.abs().max() for g in one.values()) > 1e-3
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-6, atol=1e-9)


def test_the_mean_of_small_losses_is_another_gradient():
    """What the two passes are for: without them the test above would not hold."""
    method = make("simclr")
    views = [torch.randn(IMAGES, 3, SIZE, SIZE, dtype=torch.float64) for _ in range(2)]
    whole, parts = method, copy.deepcopy(method)
    whole(views, 0)["loss"].backward()
    for part in zip(*(view.chunk(PARTS) for view in views), strict=True):
        (parts(list(part), 0)["loss"] / PARTS).backward()
    one, two = gradients(whole), gradients(parts)
    assert max((two[key] - one[key]).abs().max() for key in one) > 1e-3


def test_both_passes_draw_the_same_random_numbers():
    """With dropout the second pass must repeat the first, or its gradient is of other z."""
    method = make("simclr")
    method.backbone.blocks[0].mlp.drop1 = nn.Dropout(0.5)
    seen = []
    method.projector.register_forward_hook(lambda m, x, z: seen.append(z.detach()))
    views = [torch.randn(IMAGES, 3, SIZE, SIZE, dtype=torch.float64) for _ in range(2)]
    cached(method, views, seed=torch.manual_seed)
    first, second = seen[:PARTS], seen[PARTS:]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])


def test_batch_norm_counts_each_batch_once():
    method = simclr.SimCLR(
        backbones.build("convnet4", image_size=SIZE, channels=3), simclr.Config()
    )
    views = [torch.randn(IMAGES, 3, SIZE, SIZE) for _ in range(2)]
    once = copy.deepcopy(method)
    for part in zip(*(view.chunk(PARTS) for view in views), strict=True):
        once(list(part), 0)
    cached(method, views)
    buffers = dict(once.named_buffers())
    assert buffers
    for name, value in method.named_buffers():
        torch.testing.assert_close(value, buffers[name])


def test_a_run_that_accumulates_trains_as_one_with_the_large_batch(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(24):
        pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    config = TrainingConfig(data=str(tmp_path / "images"), backbone="vit_micro_p4", image_size=8,
                            epochs=2, batch_size=12, warmup_epochs=0, base_lr=0.3,
                            out=str(tmp_path / "1"), device="cpu")  # fmt: skip

    def run(world, accumulate):
        out = tmp_path / f"{world}_{accumulate}"
        small = replace(config, accumulate=accumulate, batch_size=12 // accumulate, out=str(out))
        work = partial(train_simclr, small)
        assert world == 1 or forks.run(world, work) == [0] * world
        if world == 1:
            work(0)
        return RunFolder(out).load_checkpoint()

    one = run(1, 1)
    for other in (run(1, 3), run(2, 3)):
        assert one["step"] == other["step"] == 4
        for name, value in one["method"].items():
            torch.testing.assert_close(other["method"][name], value, rtol=0, atol=1e-6)


def train_simclr(config, rank):
    train(set_up("simclr", simclr.Config(head_bn=False), config))
