"""Maps of attention and activation, their masks, and the overlap with objects."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image

from sslzoo import backbones, registry
from sslzoo.data import DataError
from sslzoo.evaluation.attention import (
    activation_map,
    attention_weights,
    enlarge,
    head_maps,
    jaccard,
    top_mass,
)


def vit(**options):
    torch.manual_seed(0)
    sizes = dict(img_size=16, patch_size=4, in_chans=3, embed_dim=24, num_heads=3, depth=2,
                 num_classes=0)  # fmt: skip
    return timm.models.VisionTransformer(**(sizes | options)).eval()


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}, {"reg_tokens": 2, "class_token": True}])
def test_weights_are_those_of_attention_that_is_not_fused(options):
    model, x = vit(**options), torch.randn(2, 3, 16, 16)
    seen = []
    attn = model.blocks[-1].attn
    attn.fused_attn = False
    handle = attn.attn_drop.register_forward_hook(lambda m, inputs, out: seen.append(out))
    before = model(x)
    handle.remove()
    attn.fused_attn = True
    weights = attention_weights(model, x)
    torch.testing.assert_close(weights, seen[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    torch.testing.assert_close(model(x), before)


def test_maps_leave_out_class_token_and_registers():
    model, x = vit(reg_tokens=2), torch.randn(2, 3, 16, 16)
    maps, weights = head_maps(model, x), attention_weights(model, x)
    assert maps.shape == (2, 3, 4, 4)
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, 3))
    rows = weights[:, :, 0, 3:]
    torch.testing.assert_close(maps.flatten(2), rows / rows.sum(-1, keepdim=True))
    without = vit(class_token=False, global_pool="avg")
    weights = attention_weights(without, x)
    torch.testing.assert_close(head_maps(without, x).flatten(2), weights.mean(2))


def test_attention_that_is_not_plain_is_told():
    model = vit()
    model.blocks[-1].attn.proj.register_forward_hook(lambda m, inputs, out: out + 1)
    handle = model.blocks[-1].attn.register_forward_hook(lambda m, inputs, out: out * 2)
    with pytest.raises(DataError, match="is not q k"):
        attention_weights(model, torch.randn(1, 3, 16, 16))
    handle.remove()
    with pytest.raises(DataError, match="no attention heads"):
        attention_weights(backbones.build("convnet4", image_size=8), torch.zeros(1, 3, 8, 8))


def test_the_mask_is_the_least_set_with_the_mass():
    one = torch.tensor([[0.05, 0.15], [0.3, 0.5]])
    assert top_mass(one, 0.49).tolist() == [[False, False], [False, True]]
    assert top_mass(one, 0.6).tolist() == [[False, False], [True, True]]
    assert top_mass(one, 0.9).tolist() == [[False, True], [True, True]]
    maps = torch.rand(4, 3, 5, 5)
    kept = top_mass(maps, 0.6)
    share = (maps * kept).sum((2, 3)) / maps.sum((2, 3))
    least = torch.where(kept, maps, torch.inf).amin((2, 3)) / maps.sum((2, 3))
    assert (share >= 0.6 - 1e-6).all() and (share - least < 0.6).all()


def test_jaccard_by_hand():
    truth = torch.tensor([[True, True, False, False]])
    found = torch.tensor([[[True, False, True, False]], [[True, True, False, False]]])
    assert jaccard(found, truth).tolist() == [pytest.approx(1 / 3), 1]
    counted = torch.tensor([[True, True, False, True]])
    assert jaccard(found, truth, counted).tolist() == [0.5, 1]
    assert jaccard(torch.zeros(1, 1, 2, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.bool)) == 1


def test_cells_are_enlarged_to_their_pixels():
    one = torch.arange(4).reshape(2, 2)
    assert enlarge(one, 4).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]


def test_activation_of_a_map_of_nothing_is_even():
    model = backbones.build("convnet4", image_size=16).eval()
    maps = activation_map(model, torch.randn(2, 3, 16, 16))
    torch.testing.assert_close(maps.sum((1, 2, 3)), torch.ones(2))
    torch.nn.init.zeros_(model.blocks[-1][1].weight)
    torch.nn.init.constant_(model.blocks[-1][1].bias, -1.0)
    flat = activation_map(model, torch.randn(2, 3, 16, 16))
    assert torch.equal(flat, torch.full_like(flat, 1 / flat[0].numel()))


def table(tmp_path, shape=(24, 24), mask_shape=(24, 24)):
    """A Parquet file of images with a bright square, and its mask."""
    rows = {"image": [], "mask": []}
    for i in range(6):
        image, mask = np.zeros((*shape, 3), np.uint8), np.zeros(mask_shape, np.uint8)
        image[4 : 12 + i, 6:14], mask[4 : 12 + i, 6:14] = 250, 255
        for name, pixels in (("image", image), ("mask", mask)):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "png")
            rows[name].append({"bytes": buffer.getvalue(), "path": f"{i}.png"})
    path = tmp_path / "objects.parquet"
    pq.write_table(pa.table(rows), path)
    return str(path)


def test_overlap_with_masks_is_measured(judge, make_subject, tmp_path):
    path = table(tmp_path)
    values, result = judge("attention", make_subject("vit_tiny_p4", channels=3, image_size=24),
                           masks=path, pictured=2)  # fmt: skip
    assert values["Jaccard, mean over heads"] <= values["Jaccard, best head of each image"] <= 1
    assert values["Jaccard, mean over heads"] == pytest.approx(
        np.mean(result.details["jaccard_by_head"]))  # fmt: skip
    with Image.open(result.pictures["maps"]) as picture:
        assert picture.size == (116 * 5, 116 * 2)  # image, mean, three heads; a gap of 4
    values, result = judge("attention", make_subject(channels=3, image_size=24), masks=path)
    assert result.details["maps"] == "activation"
    assert 0 < values["Jaccard of the activation map"] < 1


def test_a_perfect_map_has_overlap_one(judge, make_subject, tmp_path, monkeypatch):
    module = registry.evaluator("attention")
    bright = lambda s, c, views: (views[:, :1] > 100).double() + 1e-9  # noqa: E731
    monkeypatch.setattr(module, "maps_of", bright)
    values, _ = judge("attention", make_subject(channels=3, image_size=24), mass=0.999,
                      masks=table(tmp_path), pictured=0)  # fmt: skip
    assert values["Jaccard of the activation map"] == pytest.approx(1)


def test_without_masks_there_is_a_picture_of_the_test_images(judge):
    values, result = judge("attention", pictured=3)
    assert values == {} and Image.open(result.pictures["maps"]).size == (116 * 2, 116 * 3)


def test_faults_are_told(judge, make_subject, tmp_path):
    small = table(tmp_path, mask_shape=(12, 24))
    with pytest.raises(
        DataError, match=r"mask of a row has \(12, 24\) pixels, its image \(24, 24\)"
    ):
        judge("attention", make_subject(channels=3, image_size=24), masks=small)
    with pytest.raises(DataError, match="3 channels; this backbone takes 1"):
        judge("attention", masks=table(tmp_path))
    with pytest.raises(DataError, match="block 12 is asked; the transformer has 12"):
        judge("attention", make_subject("vit_tiny_p4"), block=12)
    with pytest.raises(DataError, match="of no known layout"):
        judge("attention", masks=str(tmp_path / "nothing"))
