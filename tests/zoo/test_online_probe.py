"""The linear probe on random views, and a transformer's last blocks side by side."""

import json

import pytest
import timm
import torch

from sslzoo import backbones
from sslzoo.cli import main
from sslzoo.data import DataError, ImageData
from sslzoo.evaluation.online_probe import online_probe
from sslzoo.evaluation.sgd_probe import sgd_probe

GRID = dict(learning_rates=(0.1, 1.0), weight_decays=(0.0,), epochs=5)


def hold(subject, images, labels):
    """A Subject whose two splits are these images."""
    data = ImageData("held", images=images, labels=labels)
    subject.kind = subject.kind._replace(open=lambda *a, **k: data)
    return subject


# Random views


def test_views_that_show_nothing_new_give_the_probe_on_cached_features(make_subject):
    """A flat image is the same in any crop; a batch holds all, so that the order does not count."""
    levels = torch.arange(0, 240, 4, dtype=torch.uint8)
    images = levels[:, None, None, None].expand(-1, 1, 8, 8).contiguous()
    subject = hold(make_subject(max_train=0, max_test=0), images, (levels > 100).long())
    cached = sgd_probe(*subject.sets(), **GRID)
    online = online_probe(subject, "crop", **GRID)
    assert online == {None: cached} and 0.5 < cached.top1 <= 1


@pytest.mark.parametrize("augment", ["crop", "shift"])
def test_each_epoch_sees_the_fitted_images_in_other_views(make_subject, augment):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 1, 8, 8), generator=generator, dtype=torch.uint8)
    subject = hold(make_subject(max_train=0, max_test=0), images, torch.arange(40) % 2)
    subject.sets()  # the evaluation views, which are none of those that are counted
    before = {name: value.clone() for name, value in subject.backbone.state_dict().items()}
    seen = []
    subject.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    online_probe(subject, augment, batch_size=16, **GRID)
    epochs = torch.cat(seen).unflatten(0, (5, 36))  # a tenth is held out
    assert [len(x) for x in seen[:3]] == [16, 16, 4], "no image is left out"
    views = {tuple(view.flatten().tolist()) for epoch in epochs for view in epoch}
    assert len(views) > 4 * 36
    assert all(torch.equal(value, before[name])
               for name, value in subject.backbone.state_dict().items())  # fmt: skip
    assert not any(module.training for module in subject.backbone.modules())


def test_a_flip_that_always_comes_mirrors_every_view(make_subject):
    """A shift is of one pixel here: a bar at the left edge is seen at the right."""
    images = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
    images[:, :, :, :3] = 255
    subject = hold(make_subject(max_train=0, max_test=0), images, torch.arange(20) % 2)
    subject.sets()
    sides = {}
    for flip in (0.0, 1.0):
        seen = []
        handle = subject.backbone.register_forward_pre_hook(
            lambda module, inputs, seen=seen: seen.append(inputs[0])
        )
        online_probe(subject, "shift", flip=flip, **GRID)
        handle.remove()
        x = torch.cat(seen)
        sides[flip] = (x[..., :2].mean() > x[..., -2:].mean()).item()
    assert sides == {0.0: True, 1.0: False}


def test_the_command_probes_layers_on_random_views_and_says_the_same_again(tmp_path, capsys):
    argv = ["evaluate", "linear", "vit_micro_p4", "--data", "digits", "--channels", "1",
            "--image_size", "8", "--device", "cpu", "--max_train", "200", "--max_test", "100",
            "--solver", "sgd", "--augment", "shift", "--flip", "0", "--epochs", "3",
            "--repeats", "2", "--layers", "last1,last2+mean", "--out", str(tmp_path)]  # fmt: skip
    assert main(argv) == 0
    printed = capsys.readouterr().out
    (entry,) = json.loads((tmp_path / "evaluation.json").read_text())["evaluations"]
    assert entry["protocol"] == "linear" and entry["options"]["augment"] == "shift"
    assert [row["metric"] for row in entry["results"]] == [
        f"{layer}: all labels, top-{k}" for layer in ("last1", "last2+mean") for k in (1, 5)
    ]
    assert all(len(entry["details"]["chosen"][layer]) == 2 for layer in ("last1", "last2+mean"))
    assert entry["results"][0]["value"] > 0.2 and entry["results"][0]["std"] is not None
    assert main(argv) == 0 and capsys.readouterr().out == printed


def test_options_that_do_not_fit_are_told(judge, make_subject):
    with pytest.raises(ValueError, match="augment crop is for --solver sgd"):
        judge("linear", augment="crop")
    with pytest.raises(ValueError, match="flip 0 to 1"):
        judge("linear", solver="sgd", flip=2.0)
    one = torch.zeros(20, dtype=torch.int64)
    subject = hold(make_subject(), torch.zeros(20, 1, 8, 8, dtype=torch.uint8), one)
    with pytest.raises(DataError, match="at least two classes"):
        judge("linear", subject, solver="sgd", augment="crop")


# The last blocks


def test_last_blocks_are_timm_s_intermediate_layers_side_by_side():
    torch.manual_seed(1)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, patch_size=8,
                              depth=5, reg_tokens=2).eval()  # fmt: skip
    for value in model.norm.parameters():  # a norm of ones and zeros would hide a second one
        torch.nn.init.normal_(value)
    x = torch.randn(3, 3, 32, 32)
    pairs = model.get_intermediate_layers(x, 4, return_prefix_tokens=True, norm=True)
    patches, prefix = zip(*pairs, strict=True)
    names = ["last1", "last4", "last4+mean", "blocks.4"]
    found = backbones.layer_features(model, x, names)
    four = torch.cat([tokens[:, 0] for tokens in prefix], 1)
    torch.testing.assert_close(found["last4"], four)
    torch.testing.assert_close(found["last1"], prefix[-1][:, 0])
    expected = torch.cat([four, patches[-1].mean(1)], 1)
    torch.testing.assert_close(found["last4+mean"], expected)
    assert [found[name].shape[1] for name in names] == [192, 768, 960, 192]
    torch.testing.assert_close(model.norm(found["blocks.4"]), found["last1"])


@pytest.mark.parametrize(
    "source, layer, words",
    [
        ("convnet4", "last4", "last4 is of transformers with a class token; ConvNet is none"),
        ("vit_micro_p4", "last9", "last9 asks for 9 blocks; the encoder has 4"),
        ("vit_micro_p4", "last0", "no layer 'last0'"),
    ],
)
def test_last_blocks_that_are_not_there_are_told(make_subject, source, layer, words):
    with pytest.raises(ValueError, match=words):
        make_subject(source, layers=layer)
