"""Training through the backbone: layer decay, recipes, frozen stages, few labels."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

from sslzoo import backbones, registry
from sslzoo.data import DataError, open_data
from sslzoo.evaluation.finetuning import (
    CONVNET,
    SIMCLR,
    VIT,
    Classifier,
    first_stages,
    fit,
    optimizer_of,
    recipe_for,
    renew,
    set_training,
    train_view,
)
from sslzoo.evaluation.layer_decay import decayed_groups, layer_ids
from sslzoo.evaluation.regularisers import RandAugment, RandomErasing, mixing, set_drop_path
from sslzoo.optimizers import LARS

MEAN, STD = (0.3,), (0.4,)


def scales(groups, model):
    names = {id(value): name for name, value in model.named_parameters()}
    return {names[id(value)]: (group["lr_scale"], group["weight_decay"])
            for group in groups for value in group["params"]}  # fmt: skip


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t", "convnext_atto"])
def test_layer_decay_is_timms_but_for_what_follows_the_last_block(name):
    """timm gives the norm behind the last block that block's rate; MAE and we the head's."""
    model = timm.create_model(name, num_classes=5)
    ours = scales(decayed_groups(model, 0.05, 0.75), model)
    theirs = scales(param_groups_layer_decay(model, 0.05, layer_decay=0.75), model)
    # timm has no weight decay on tokens and positions either, which are no vectors.
    listed = getattr(model, "no_weight_decay", set)()
    is_vit = name.startswith("vit")
    assert {*ours} == {*theirs}
    for key, (scale, decay) in ours.items():
        if key not in listed:
            assert decay == theirs[key][1], key
        if is_vit and not key.startswith(("norm.", "head.")):
            assert scale == pytest.approx(theirs[key][0]), key
    if is_vit:
        assert ours["norm.weight"][0] == ours["head.weight"][0] == 1
        assert theirs["norm.weight"][0] == pytest.approx(0.75)


def test_layer_decay_of_twelve_blocks_by_hand():
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5)
    found = scales(decayed_groups(model, 0.05, 0.75), model)
    assert found["patch_embed.proj.weight"] == (pytest.approx(0.0238, abs=1e-4), 0.05)
    assert found["cls_token"][0] == found["pos_embed"][0] == pytest.approx(0.75**13)
    assert found["blocks.11.mlp.fc1.weight"] == (0.75, 0.05)
    assert found["blocks.0.norm1.bias"] == (pytest.approx(0.75**12), 0.0)
    assert found["head.bias"] == (1.0, 0.0)


def test_blocks_of_convolutional_networks_have_depths():
    ids, head = layer_ids(timm.create_model("resnet18", num_classes=3))
    assert head == 9 and ids["conv1.weight"] == 0 and ids["fc.weight"] == 9
    assert ids["layer1.0.conv1.weight"] == 1 and ids["layer4.1.conv2.weight"] == 8
    ids, head = layer_ids(Classifier(backbones.build("convnet4", image_size=8), 3, head_std=1))
    assert head == 5 and ids["head.weight"] == 5 and ids["backbone.blocks.3.0.weight"] == 4


def test_the_head_may_have_a_larger_rate():
    model = Classifier(backbones.build("convnet4", image_size=8, channels=1), 3, head_std=0.1)
    recipe = replace(CONVNET, lr=0.01, head_lr_scale=10)
    optimizer, peak = optimizer_of(model, recipe, 64)
    found = scales(optimizer.param_groups, model)
    assert peak == 0.01 and found["head.weight"][0] == 10
    assert found["backbone.blocks.0.0.weight"][0] == 1
    _, peak = optimizer_of(model, VIT, 64)
    assert peak == pytest.approx(VIT.lr * 64 / 256)


def test_recipes_fit_the_backbone_and_take_changes():
    assert recipe_for(backbones.build("vit_tiny_p4", image_size=8)) == VIT
    recipe = recipe_for(backbones.build("convnet4", image_size=8), epochs=3, layer_decay=None)
    assert recipe == replace(CONVNET, epochs=3)


def test_mixup_mixes_labels_as_it_mixes_images():
    x = torch.arange(4.0)[:, None, None, None].expand(4, 1, 2, 2)
    mix = mixing(0.8, 0.0, classes=4)
    torch.manual_seed(0)
    images, labels = mix(x, torch.arange(4))
    torch.testing.assert_close(labels @ torch.arange(4.0), images[:, 0, 0, 0])
    torch.testing.assert_close(labels.sum(1), torch.ones(4))
    same, numbers = mixing(0.0, 0.0, classes=4)(x, torch.arange(4))
    assert same is x and numbers.tolist() == [0, 1, 2, 3]


def test_rand_augment_keeps_the_scale_and_comes_again():
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    pixels = torch.randint(0, 256, (6, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    m, s = (torch.tensor(v)[:, None, None] for v in (mean, std))
    x = (pixels / 255 - m) / s
    assert RandAugment(0, mean, std)(x) is x
    augment = RandAugment(9, mean, std)
    torch.manual_seed(0)
    first = augment(x)
    torch.manual_seed(0)
    assert torch.equal(augment(x), first)
    values = (first * s + m) * 255
    assert values.min() > -0.01 and values.max() < 255.01
    assert (values - values.round()).abs().max() < 0.01, "still bytes, normalised once"
    assert sum(not torch.allclose(a, b, atol=1e-5) for a, b in zip(first, x, strict=True)) >= 4


def test_erasing_hits_its_share_with_noise():
    x = torch.full((400, 1, 12, 12), 7.0)
    assert RandomErasing(0.0)(x) is x
    torch.manual_seed(0)
    erased = RandomErasing(0.25)(x)
    hit = (erased != x).flatten(1)
    share = hit.any(1).float().mean().item()
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / 400) ** 0.5
    areas = hit[hit.any(1)].float().mean(1)
    assert areas.min() > 0.01 and areas.max() < 0.36
    noise = erased[erased != x]
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1


def test_drop_path_rises_to_the_last_block_and_keeps_the_names():
    model = backbones.build("vit_micro_p4", image_size=8, channels=1)
    before = [name for name, _ in model.named_parameters()]
    set_drop_path(model, 0.3)
    rates = [block.drop_path2.drop_prob for block in model.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert [name for name, _ in model.named_parameters()] == before


def digits(count=60):
    return open_data("digits").subset(range(count))


def trained(seed=0, frozen=frozenset(), recipe=None, epochs=3, backbone=None):
    torch.manual_seed(0)
    backbone = backbone or backbones.build("convnet4", image_size=8, channels=1)
    model = Classifier(backbone, 10, head_std=0.01)
    data = digits()
    recipe = replace(recipe or CONVNET, epochs=epochs, batch_size=30)
    fit(model, data, train_view(data, 8, MEAN, STD, 0.0), recipe, seed=seed, device="cpu",
        frozen=frozen)  # fmt: skip
    return model


def test_the_same_seed_gives_the_same_weights():
    first, again, other = trained(), trained(), trained(seed=1)
    values = again.state_dict()
    assert all(torch.equal(value, values[name]) for name, value in first.state_dict().items())
    assert not torch.equal(first.head.weight, other.head.weight)


def test_frozen_stages_keep_every_parameter_and_buffer():
    backbone = backbones.build("convnet4", image_size=8, channels=1)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    frozen = first_stages(backbone, 2)
    assert frozen == {name for name in before if name.startswith(("blocks.0.", "blocks.1."))}
    model = trained(frozen=frozen, backbone=backbone)
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, before[name]) == (name in frozen), name
    set_training(model, frozen)
    assert not model.backbone.blocks[1][1].training and model.backbone.blocks[2][1].training


def test_first_stages_hold_the_stem_and_at_least_one_stage_stays():
    names = first_stages(backbones.build("resnet10t", image_size=32), 1)
    assert any(name.startswith("conv1") for name in names)
    assert any(name.startswith("layer1.") for name in names)
    assert not any(name.startswith("layer2.") for name in names)
    vit = first_stages(backbones.build("vit_micro_p4", image_size=8), 2)
    assert {"cls_token", "pos_embed", "blocks.1.norm1.weight"} < vit
    assert not any(name.startswith(("blocks.2.", "norm.")) for name in vit)
    with pytest.raises(DataError, match="4 stages can not be frozen: the backbone has 4"):
        first_stages(backbones.build("convnet4", image_size=8), 4)


def test_renewed_stages_are_those_of_the_twin():
    ours, twin = (backbones.build("convnet4", image_size=8) for _ in range(2))
    kept = first_stages(ours, 2)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    renew(ours, kept, twin)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, before[name] if name in kept else twin.state_dict()[name]), name


def test_divergence_is_told():
    with pytest.raises(DataError, match="fine-tuning diverged"):
        trained(recipe=replace(CONVNET, lr=1e30))


# Protocols


def test_fine_tuning_beats_chance_and_has_a_control(judge):
    values, result = judge("finetune", epochs=12, batch_size=32, flip=0.0)
    assert values["fine-tuned, top-1"] > 0.4 and "from scratch, top-1" in values
    assert values["fine-tuned, top-5"] >= values["fine-tuned, top-1"]
    assert result.details["recipes"]["fine-tuned"]["optimizer"] == "sgd"


def test_the_rate_is_chosen_on_held_out_images(judge, make_subject):
    _, result = judge("finetune", make_subject("vit_micro_p4"), epochs=1, control=False,
                      learning_rates=(1e-9, 1e-2), mixup=0.8, cutmix=1.0, rand_augment=9,
                      erasing=0.25, drop_path=0.1)  # fmt: skip
    recipe = result.details["recipes"]["fine-tuned"]
    assert recipe["optimizer"] == "adamw" and recipe["lr"] in (1e-9, 1e-2)
    assert recipe["mixup"] == 0.8 and recipe["layer_decay"] == 0.65


def test_few_labels_are_judged_in_every_form_with_a_curve(judge, make_subject):
    forms = ("probe", "finetune", "stages", "scratch")
    values, result = judge("semi", make_subject(max_train=200), shares=(0.1,), per_class=(5,),
                           forms=forms, epochs=2, draws=2, flip=0.0)  # fmt: skip
    words = ("probe", "fine-tuned", "first stages frozen", "from scratch")
    assert {f"{k} labels per class, {word}, top-1" for k in (2, 5) for word in words} == {*values}
    assert result.pictures["curve"].exists() and len(result.details["labelled"]["5"]) == 2
    assert np.array(result.details["labelled"]["2"]).shape == (2, 20)
    assert [k for k, _, _ in result.details["curves"]["probe"]] == [2, 5]
    assert values["5 labels per class, probe, top-1"] > values["2 labels per class, probe, top-1"]


def test_few_labels_train_longer_and_simclrs_recipe_is_lars(make_subject):
    semi = registry.evaluator("semi")
    subject, config = make_subject(), semi.Config()
    count = len(subject.data("train"))
    few, many = ([list(range(n))] for n in (round(0.01 * count), round(0.1 * count)))
    recipes = [semi.plain_recipe(subject, config, draws) for draws in (few, many)]
    assert [recipe.epochs for recipe in recipes] == [200, 100]
    assert {recipe.batch_size for recipe in recipes} == {64}
    model = Classifier(subject.trainable(), 10, head_std=0.01)
    optimizer, peak = optimizer_of(model, SIMCLR, 1024)
    assert isinstance(optimizer, LARS) and peak == pytest.approx(0.16)
    assert SIMCLR.epochs == 60 and SIMCLR.weight_decay == 0


def test_top5_is_given_from_a_hundred_classes_on():
    rows = registry.evaluator("semi").form_rows("m", np.array([[0.2, 0.6], [0.4, 0.8]]), 50, 100)
    assert [(row.metric, round(row.value, 6)) for row in rows] == [
        ("m, top-1", 0.3), ("m, top-5", 0.7)]  # fmt: skip
    assert len(registry.evaluator("semi").form_rows("m", np.array([[0.2, 0.6]]), 50, 99)) == 1


def test_an_encoder_with_too_few_stages_has_no_form_of_stages(judge, make_subject):
    options = dict(shares=(0.1,), draws=1, epochs=1, frozen_stages=9)
    values, result = judge("semi", make_subject(), forms=("probe", "stages"), **options)
    assert "the form stages is left out: 9 stages can not be frozen" in result.notes[-1]
    assert len(values) == 1
    with pytest.raises(DataError, match="9 stages can not be frozen"):
        judge("semi", make_subject(), forms=("stages",), **options)
