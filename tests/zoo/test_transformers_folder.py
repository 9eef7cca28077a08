"""Folders of Hugging Face's transformers: the same features as that library computes."""

import json

import pytest
import torch
from safetensors.torch import save_file

from sslzoo.evaluate import Common, Subject
from sslzoo.evaluation.opening import open_backbone

TINY = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=32, patch_size=8)


def plain_vit(state, x, heads, eps):
    """Class token of a ViT of transformers, written down from the paper with their names."""

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + eps).sqrt()
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    kernel, bias = (
        state[f"embeddings.patch_embeddings.projection.{n}"] for n in ("weight", "bias")
    )
    patches = torch.nn.functional.conv2d(x, kernel, bias, stride=kernel.shape[-1]).flatten(2).mT
    tokens = torch.cat([state["embeddings.cls_token"].expand(len(x), -1, -1), patches], 1)
    tokens = tokens + state["embeddings.position_embeddings"]
    for i in range(TINY["num_hidden_layers"]):
        block = f"encoder.layer.{i}"
        h = norm(tokens, f"{block}.layernorm_before")
        q, k, v = (linear(h, f"{block}.attention.attention.{n}").unflatten(-1, (heads, -1))
                   .transpose(1, 2) for n in ("query", "key", "value"))  # fmt: skip
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        tokens = tokens + linear(mixed, f"{block}.attention.output.dense")
        h = linear(norm(tokens, f"{block}.layernorm_after"), f"{block}.intermediate.dense")
        h = torch.nn.functional.gelu(h)
        tokens = tokens + linear(h, f"{block}.output.dense")
    return norm(tokens, "layernorm")[:, 0]


@pytest.fixture
def vit_folder(tmp_path):
    """A folder with the names and the configuration of a ViT of transformers; its tensors."""
    generator = torch.Generator().manual_seed(0)
    D, M = TINY["hidden_size"], 96
    shapes = {"embeddings.cls_token": (1, 1, D), "embeddings.position_embeddings": (1, 17, D),
              "embeddings.patch_embeddings.projection.weight": (D, 3, 8, 8),
              "embeddings.patch_embeddings.projection.bias": (D,),
              "layernorm.weight": (D,), "layernorm.bias": (D,),
              "pooler.dense.weight": (D, D), "pooler.dense.bias": (D,)}  # fmt: skip
    for i in range(TINY["num_hidden_layers"]):
        for name, shape in (("attention.attention.query", (D, D)), ("layernorm_before", (D,)),
                            ("attention.attention.key", (D, D)), ("layernorm_after", (D,)),
                            ("attention.attention.value", (D, D)), ("output.dense", (D, M)),
                            ("attention.output.dense", (D, D)),
                            ("intermediate.dense", (M, D))):  # fmt: skip
            shapes[f"encoder.layer.{i}.{name}.weight"] = shape
            shapes[f"encoder.layer.{i}.{name}.bias"] = shape[:1]
    state = {n: 0.3 * torch.randn(s, generator=generator) for n, s in shapes.items()}
    save_file(state, tmp_path / "model.safetensors")
    config = TINY | dict(model_type="vit", layer_norm_eps=1e-2, intermediate_size=M)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3}))
    return tmp_path, state


def test_a_vit_has_the_features_of_its_definition(vit_folder):
    folder, state = vit_folder
    model, about = open_backbone(folder)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(x), plain_vit(state, x, 3, 1e-2), rtol=1e-4, atol=1e-5)
    assert about["mean"] == [0.5] * 3 and about["image_size"] == 32
    judged = Subject(folder, Common(data="cifar10", device="cpu", image_size=48))
    assert judged.untrained().pos_embed.shape == judged.backbone.pos_embed.shape == (1, 37, 24)


def test_faults_are_told(vit_folder):
    folder, _ = vit_folder
    config = json.loads((folder / "config.json").read_text())

    def told(changes, words):
        (folder / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(ValueError, match=words):
            open_backbone(folder)

    told({"model_type": "bert"}, "a bert of transformers is not read; vit, vit_mae")
    told({"hidden_act": "relu"}, "the activation relu is not read, only gelu")
    told({"num_hidden_layers": 3}, "do not fit its config.json: 12 missing")
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ValueError, match="no 'hidden_size'"):
        open_backbone(folder)


@pytest.mark.parametrize("kind", ["ViT", "ViTMAE", "Dinov2", "Dinov2WithRegisters", "SwiGLU"])
def test_transformers_itself_gives_the_same(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    options = dict(TINY)
    if kind == "SwiGLU":
        kind, options = "Dinov2", options | {"use_swiglu_ffn": True}
    config = getattr(transformers, f"{kind}Config")(**options)
    if kind == "ViTMAE":
        config.mask_ratio = 0.0
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.3)
    model.save_pretrained(tmp_path)
    ours, _ = open_backbone(tmp_path)
    x = torch.randn(2, 3, 32, 32)
    theirs = model(x).last_hidden_state[:, 0]
    torch.testing.assert_close(ours(x), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer_type, depths", [("basic", [2, 2, 2, 2]),
                                                ("bottleneck", [3, 4, 6, 3])])  # fmt: skip
def test_resnets_of_transformers(tmp_path, layer_type, depths):
    transformers = pytest.importorskip("transformers")
    sizes = [64, 128, 256, 512] if layer_type == "basic" else [256, 512, 1024, 2048]
    config = transformers.ResNetConfig(layer_type=layer_type, depths=depths, hidden_sizes=sizes)
    model = transformers.ResNetModel(config).eval()
    model.save_pretrained(tmp_path)
    ours, _ = open_backbone(tmp_path)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(x), model(x).pooler_output.flatten(1), rtol=1e-4, atol=1e-5)
