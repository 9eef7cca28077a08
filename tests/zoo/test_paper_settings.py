"""Recipes and defaults hold the values of the papers, and a run says what it chose and why."""

import io

import pytest
import torch
from rich.console import Console

from sslzoo import registry
from sslzoo.methods import cpc, dino, dinov2, moco, moco_v3
from sslzoo.options import parse_pretrain
from sslzoo.run_folder import load_untrained
from sslzoo.training import set_up, train
from sslzoo.training_config import TrainingConfig

# What the papers and their official code have, and for images of 32 pixels the specification.
RECIPES = {
    "simclr_imagenet": dict(
        backbone="resnet50", batch_size=4096, optimizer="lars", base_lr=0.3, weight_decay=1e-6,
        warmup_epochs=10, temperature=0.1, jitter_strength=1.0, blur=0.5, crop_min_scale=0.08,
        projector_features=128, projector_layers=2, head_std=0.01,
    ),
    "simclr_cifar10": dict(
        batch_size=512, optimizer="sgd", base_lr=0.12, weight_decay=5e-4, warmup_epochs=10,
        epochs=200, temperature=0.5, jitter_strength=0.5, blur=0.0, crop_min_scale=0.2,
    ),
    "moco_v1_imagenet": dict(
        backbone="resnet50", version="v1", queue_size=65536, key_momentum=0.999, temperature=0.07,
        head_features=128, optimizer="sgd", momentum=0.9, base_lr=0.03, weight_decay=1e-4,
        epochs=200, lr_drops=[120, 160], batch_size=256, warmup_epochs=0, crop_min_scale=0.2,
        both_ways=False,
    ),
    "moco_v1_cifar10": dict(
        version="v1", queue_size=8192, key_momentum=0.99, temperature=0.1, base_lr=0.12,
        weight_decay=5e-4, lr_drops=[], epochs=200, batch_size=512, both_ways=False,
    ),
    "moco_v2_imagenet": dict(
        backbone="resnet50", version="v2", queue_size=65536, key_momentum=0.999, temperature=0.2,
        head_width=0, base_lr=0.03, weight_decay=1e-4, lr_drops=[], warmup_epochs=0, blur=0.5,
    ),
    "moco_v2_cifar10": dict(
        version="v2", queue_size=8192, key_momentum=0.99, temperature=0.1, base_lr=0.12,
        weight_decay=5e-4, epochs=200, batch_size=512, both_ways=True, blur=0.0,
    ),
    "moco_v3_imagenet": dict(
        backbone="vit_small_moco", optimizer="adamw", base_lr=1.5e-4, weight_decay=0.1,
        warmup_epochs=40, epochs=300, batch_size=4096, temperature=0.2, key_momentum=0.99,
        head_width=4096, head_features=256, crop_min_scale=0.08, blur=(1.0, 0.1),
        solarize=(0.0, 0.2), frozen_patch_embed=True,
    ),
    "moco_v3_cifar10": dict(
        backbone="vit_tiny_p4", optimizer="adamw", base_lr=3e-4, weight_decay=0.1,
        warmup_epochs=10, epochs=200, batch_size=256, temperature=0.2, key_momentum=0.99,
        head_width=1024, head_features=256, blur=(0.0, 0.0), solarize=(0.0, 0.2),
    ),
    "cpc_audio_16khz": dict(
        backbone="cpc_audio_large", steps=12, negatives=128, window=20480, norm="batch",
        score="mean", base_lr=2e-4, lr_rule="none", weight_decay=0.0, betas=(0.9, 0.999),
    ),
    "cpc_fsdd": dict(
        backbone="cpc_audio", steps=6, negatives=64, window=8000, norm="channel", base_lr=5e-4,
        lr_rule="none", batch_size=32, epochs=50, same_speaker=True,
    ),
    "cpc_cifar10": dict(
        backbone="cpc_patches", steps=3, negatives=255, base_lr=5e-4, lr_rule="none",
        batch_size=128, epochs=200, patch_grayscale=0.2,
    ),
    "dino_imagenet": dict(
        backbone="vit_small_patch16_224", prototypes=65536, head_hidden=2048, head_bottleneck=256,
        head_layers=3, norm_last_layer=False, freeze_last_layer=1, base_lr=5e-4, min_lr=1e-6,
        batch_size=1024, epochs=300, warmup_epochs=10, weight_decay=0.04, weight_decay_end=0.4,
        student_temperature=0.1, warmup_teacher_temperature=0.04, teacher_temperature=0.07,
        warmup_teacher_temperature_epochs=30, teacher_momentum=0.996, center_momentum=0.9,
        clip_parameter=3.0, drop_path=0.1, local_crops=8, local_size=96,
        global_crop_scale=(0.4, 1.0), local_crop_scale=(0.05, 0.4), blur=1.0,
    ),
    "dino_cifar10": dict(
        backbone="vit_tiny_p4", prototypes=4096, epochs=200, batch_size=256, base_lr=5e-4,
        weight_decay=0.04, weight_decay_end=0.4, teacher_temperature=0.06,
        warmup_teacher_temperature_epochs=40, norm_last_layer=True, drop_path=0.05,
        local_crops=4, local_crop_scale=(0.1, 0.4), clip_parameter=3.0, blur=0.0,
    ),
    "dinov2_imagenet": dict(
        backbone="vit_large_patch16_224", prototypes=65536, separate_heads=False, head_hidden=2048,
        head_bottleneck=256, targets="centering", base_lr=2e-3, lr_rule="sqrt", min_lr=1e-6,
        weight_decay=0.04, weight_decay_end=0.4, layer_decay=0.9, patch_embed_lr=0.2,
        teacher_momentum=0.992, teacher_temperature=0.07, warmup_teacher_temperature_epochs=30,
        layer_scale=1e-5, drop_path=0.3, local_crops=8, global_crop_scale=(0.32, 1.0),
        local_crop_scale=(0.05, 0.32), mask_share=0.5, mask_ratio=(0.1, 0.5), koleo_weight=0.1,
        clip_network=3.0, freeze_last_layer=1.0,
    ),
    "dinov2_cifar10": dict(
        backbone="vit_tiny_p4", prototypes=2048, patch_prototypes=2048, separate_heads=True,
        head_hidden=512, head_bottleneck=128, targets="sinkhorn_knopp", base_lr=5e-4,
        weight_decay=0.04, weight_decay_end=0.2, layer_decay=1.0, patch_embed_lr=0.2,
        teacher_momentum=0.994, teacher_temperature=0.07, warmup_teacher_temperature_epochs=30,
        layer_scale=0.1, drop_path=0.1, registers=0, local_crops=4, koleo_weight=0.1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_values_of_its_paper(name):
    chosen = parse_pretrain(["--config", name])
    values = {**vars(chosen.training), **vars(chosen.method)}
    found = {option: values[option] for option in RECIPES[name]}
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in RECIPES[name].items()}
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()} == plain
    text = registry.recipe(name).read_text()
    assert all(f"# {word}" in text for word in ("Paper", "Command", "Cost", "Expected"))


def test_blurs_reach_three_deviations_in_views_of_every_size():
    """As PIL's does; a kernel of a tenth of a view of 96 pixels would be cut off at two."""
    views = [
        *moco.views(moco.Config(blur=0.5), 224),
        *moco_v3.views(moco_v3.Config(blur=(1.0, 0.1)), 32),
        *dino.views(dino.Config(blur=1.0, local_crops=1, local_size=96), 224),
        *dinov2.views(dinov2.Config(blur=1.0, local_crops=1, high_resolution=48), 32),
    ]
    assert [v.blur for v in views] == [0.5, 0.5, 1.0, 0.1, 1.0, 0.1, 0.5, 1.0, 0.1, 0.5]
    assert all(v.blur_kernel // 2 >= 3 * v.blur_sigma[1] for v in views)
    small = dino.views(dino.Config(blur=1.0, local_crops=1), 8)[-1]
    assert small.size == 4 and small.blur_kernel // 2 < small.size  # a border to reflect


def test_without_small_crops_the_large_ones_are_wider():
    assert dino.views(dino.Config(), 32)[0].crop_scale == (0.4, 1.0)
    assert dino.views(dino.Config(local_crops=0), 32)[0].crop_scale == (0.14, 1.0)
    given = dino.Config(local_crops=0, global_crop_scale=(0.3, 0.9))
    assert dino.views(given, 32)[0].crop_scale == (0.3, 0.9)
    assert dino.adapt(dino.Config(local_crops=0), 64, 4000)[0].global_crop_scale == (0.14, 1.0)


def said(name, config, photos, tmp_path, **options):
    """What a run of a method prints."""
    console = Console(record=True, width=200, file=io.StringIO())
    values = dict(data=str(photos), out=str(tmp_path / "run"), backbone="convnet4", image_size=8,
                  epochs=2, batch_size=8, warmup_epochs=0, log_every=5)  # fmt: skip
    train(set_up(name, config, TrainingConfig(**{**values, **options}), console))
    return console.export_text()


def test_a_run_of_moco_says_what_it_chose_and_why(photos, tmp_path):
    text = said("moco", moco.Config(), photos, tmp_path, base_lr=0.12)
    assert "learning rate 0.00375 = 0.12 x 8 / 256 (linear rule)" in text
    assert "queue of 8 keys: the largest power of two up to 65536 and a quarter of the 40" in text
    assert "key momentum 0.99: keys stay 1 steps" in text
    assert "temperature 0.1: a queue below 16384 is small" in text
    assert "batch norm in 8 groups" in text


def test_a_teacher_without_an_opinion_is_warned_of(photos, tmp_path):
    config = dino.Config(teacher_temperature=5.0, local_crops=0, prototypes=64)
    text = said("dino", config, photos, tmp_path, optimizer="adamw", base_lr=1e-3)
    assert "teacher temperature 5: training is unstable above 0.07" in text
    assert "crops from 0.14 of the image" in text and "teacher momentum 0.9" in text
    assert text.count("collapse?") == 1 and "the teacher's output is uniform" in text


def test_cpc_takes_the_norm_of_the_paper_and_keeps_it_beside_the_weights():
    assert cpc.backbone_options(cpc.Config(norm="batch"), "cpc_audio_large") == {"norm": "batch"}
    assert cpc.backbone_options(cpc.Config(norm="batch"), "cpc_patches") == {}
    backbone = registry.build_backbone(cpc, "cpc_audio", channels=1, image_size=32, norm="batch")
    assert type(backbone.convolutions[1]).__name__ == "BatchNorm1d"


def test_a_run_from_before_an_option_has_its_default(photos, tmp_path):
    said("moco_v3", moco_v3.Config(), photos, tmp_path, epochs=1)
    before, _ = load_untrained(tmp_path / "run")
    file = tmp_path / "run" / "config.yaml"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(line for line in lines if "ema_buffers" not in line))
    after, _ = load_untrained(tmp_path / "run")
    x = torch.randn(2, 3, 8, 8)
    assert len(lines) > 40 and torch.equal(before(x), after(x))
