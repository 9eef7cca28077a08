"""Encoders: sizes, maps, timm's keys, features of inner layers."""

import pytest
import timm
import torch

from sslzoo import backbones


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "image_size", "millions", "width"),
    [("resnet18", 32, 11.17, 512), ("vit_tiny_p4", 32, 5.36, 192), ("vit_small_p4", 32, 21.34, 384),
     ("convnet4", 16, 0.24, 128)],
)  # fmt: skip
def test_sizes_are_those_of_the_specification(name, image_size, millions, width):
    model = backbones.build(name, image_size=image_size)
    assert round(count(model) / 1e6, 2) == millions
    assert model.num_features == width
    assert model(torch.zeros(2, 3, image_size, image_size)).shape == (2, width)


def test_small_resnet_keeps_its_maps_large():
    model = backbones.build("resnet18", image_size=32)
    maps = []
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        layer.register_forward_hook(lambda module, inputs, output: maps.append(output.shape[-1]))
    model(torch.zeros(1, 3, 32, 32))
    assert maps == [32, 16, 8, 4]
    assert model.conv1.weight.shape == (64, 3, 3, 3)


def test_large_resnet_is_timms():
    model = backbones.build("resnet18", image_size=64, channels=1)
    twin = timm.create_model("resnet18", num_classes=0, in_chans=1)
    twin.load_state_dict(model.state_dict())
    x = torch.randn(2, 1, 64, 64)
    assert torch.equal(model.eval()(x), twin.eval()(x))


def test_weights_of_small_models_go_into_timms_as_the_docstring_says():
    model = backbones.build("resnet18", image_size=32)
    theirs = timm.create_model("resnet18", num_classes=0).state_dict()
    ours = model.state_dict()
    assert list(ours) == list(theirs)
    assert [key for key in ours if ours[key].shape != theirs[key].shape] == ["conv1.weight"]

    model = backbones.build("vit_tiny_patch16_224", image_size=32)
    twin = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, patch_size=4)
    twin.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(x), twin.eval()(x))
    assert count(model) == count(backbones.build("vit_tiny_p4", image_size=32))


def test_vits_follow_the_image_size():
    tokens = {}
    for size in (32, 64, 96):
        model = backbones.build("vit_tiny_patch16_224", image_size=size, depth=1)
        tokens[size] = model.pos_embed.shape[1] - 1
    assert tokens == {32: 64, 64: 64, 96: 36}
    model = backbones.build("vit_tiny_p4", image_size=24, patch_size=8, depth=1)
    assert model.pos_embed.shape[1] == 10
    with pytest.raises(ValueError, match="image_size 30 is no multiple of the patch size 4"):
        backbones.build("vit_tiny_p4", image_size=30)


def test_deep_stems_and_other_families_are_left_as_they_are():
    for name in ("resnet18d", "convnext_atto"):
        model = backbones.build(name, image_size=32)
        model.load_state_dict(timm.create_model(name, num_classes=0).state_dict())
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, model.num_features)


def test_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match=r"unknown backbone 'resnet_18'; did you mean .*resnet18"):
        backbones.build("resnet_18", image_size=32)
    with pytest.raises(ValueError, match="unknown backbone 'qqq'"):
        backbones.build("qqq", image_size=32)


def test_features_of_layers():
    model = backbones.build("resnet18", image_size=32).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(backbones.features(model, x), model(x))
    torch.testing.assert_close(backbones.features(model, x, "layer4"), model(x))
    assert backbones.features(model, x, "layer2").shape == (2, 128)
    with pytest.raises(ValueError, match=r"no layer 'layer5'; the nearest are .*layer4"):
        backbones.features(model, x, "layer5")

    vit = backbones.build("vit_tiny_p4", image_size=32, depth=2).eval()
    torch.testing.assert_close(backbones.features(vit, x, "norm"), vit(x))
    assert not vit.blocks[0]._forward_hooks


@pytest.mark.parametrize("name, size, shape", [
    ("nin", 32, (192, 8, 8)),
    ("dcgan_encoder", 128, (512, 4, 4)),
    ("resnet18_s", 64, (512, 8, 8)),
])  # fmt: skip
def test_encoders_of_papers_have_the_maps_of_their_papers(name, size, shape):
    model = backbones.build(name, image_size=size)
    x = torch.randn(2, 3, size, size)
    assert model.forward_features(x).shape == (2, *shape)
    assert model(x).shape == (2, model.num_features)
    assert (model.image_size, model.in_channels) == (size, 3)
    assert all(m.bias is None for m in model.modules() if isinstance(m, torch.nn.Conv2d))


def test_network_in_network_has_the_papers_layers_and_start():
    model = backbones.build("nin", image_size=32)
    convs = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [c.kernel_size[0] for c in convs] == [5, 1, 1, 5, 1, 1, 3, 1, 1, 3, 1, 1]
    assert [c.out_channels for c in convs] == [192, 160, *[96], *[192] * 9]
    # The paper's deviation, sqrt(2 / (k k out)).
    assert convs[3].weight.std().item() == pytest.approx((2 / (25 * 192)) ** 0.5, rel=0.02)


SMALL_SWIN = dict(img_size=64, window_size=2, embed_dim=24, depths=(1, 1, 1, 1), num_heads=(1,) * 4)


@pytest.mark.parametrize("name, options", [
    ("convnext_atto", {}), ("regnetx_002", {}), ("mobilenetv3_small_050", {}), ("vgg11", {}),
    ("swin_tiny_patch4_window7_224", SMALL_SWIN),
])  # fmt: skip
def test_layers_and_maps_of_timms_families(name, options):
    model = timm.create_model(name, num_classes=0, **options).eval()
    names, x = backbones.layers(model), torch.randn(1, 3, 64, 64)
    seen = {}
    for layer in names:
        model.get_submodule(layer).register_forward_hook(
            lambda m, i, out, layer=layer: seen.update({layer: out}))  # fmt: skip
    found = backbones.layer_features(model, x, names)
    is_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
    for layer in names:
        expected = seen[layer].mean((1, 2) if is_last else (2, 3))
        torch.testing.assert_close(found[layer], expected, msg=layer)
    last = backbones.dense_features(model, x)
    assert last.ndim == 4 and last.shape[1] == model.feature_info[-1]["num_chs"]
    assert last.shape[2] == last.shape[3] == 2
