"""Official checkpoints in, other libraries' layouts out: every key accounted for."""

import argparse
import json
import math

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file

from sslzoo import backbones
from sslzoo.cli import main
from sslzoo.evaluation.opening import open_backbone
from sslzoo.run_folder import RunFolder, load_backbone
from sslzoo.self_distillation import encode
from sslzoo.weights import WeightsError, export, import_weights


def fake(shapes, start=0):
    """Tensors of these shapes that take no room: all of a tensor is one number of its own."""
    return {name: torch.full((1,), float(start + i)).reshape((1,) * len(shape)).expand(shape)
            for i, (name, shape) in enumerate(shapes.items())}  # fmt: skip


def vit_shapes(width, depth, tokens, patch, layer_scale=False, chunk=""):
    """Names and shapes of an official ViT."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, tokens, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    for i in range(depth):
        block = f"blocks.{chunk}{i}."
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}{norm}.{part}": (width,) for part in ("weight", "bias")}
        for name, (out, into) in {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1),
                                  "mlp.fc2": (1, 4)}.items():  # fmt: skip
            shapes[f"{block}{name}.weight"] = (out * width, into * width)
            shapes[f"{block}{name}.bias"] = (out * width,)
        if layer_scale:
            shapes |= {f"{block}{scale}.gamma": (width,) for scale in ("ls1", "ls2")}
    return shapes | {"norm.weight": (width,), "norm.bias": (width,)}


def resnet50_shapes(head):
    """torchvision's names, whose classifier is MoCo's head."""
    shapes = {name: tuple(v.shape) for name, v in torchvision.models.resnet50().state_dict().items()
              if not name.startswith("fc.")}  # fmt: skip
    return shapes | head


def prefixed(prefix, shapes):
    return {prefix + name: shape for name, shape in shapes.items()}


def moco(head):
    shapes = {}
    for encoder in ("encoder_q", "encoder_k"):
        shapes |= prefixed(f"module.{encoder}.", resnet50_shapes(head))
    queue = {"module.queue": (128, 65536), "module.queue_ptr": (1,)}
    return {"epoch": 200, "arch": "resnet50", "state_dict": fake(shapes | queue), "optimizer": {}}


def moco_v3():
    vit = vit_shapes(384, 12, 197, 16)
    head = {f"head.{i}.weight": (8, 8) for i in (0, 3, 6)}
    shapes = {}
    for encoder in ("base_encoder", "momentum_encoder"):
        shapes |= prefixed(f"module.{encoder}.", vit | head)
    return {"epoch": 300, "arch": "vit_small",
            "state_dict": fake(shapes | {"module.predictor.0.weight": (8, 8)})}  # fmt: skip


def mae():
    decoder = {"mask_token": (1, 1, 512), "decoder_pos_embed": (1, 197, 512),
               "decoder_embed.weight": (512, 768), "decoder_blocks.0.norm1.weight": (512,),
               "decoder_norm.weight": (512,), "decoder_pred.weight": (768, 512)}  # fmt: skip
    return {"model": fake(vit_shapes(768, 12, 197, 16) | decoder),
            "args": argparse.Namespace(lr=1e-3)}  # fmt: skip


def dino():
    backbone = prefixed("backbone.", vit_shapes(384, 12, 785, 8))
    head = {f"head.mlp.{i}.weight": (8, 8) for i in (0, 2, 4)}
    head |= {"head.last_layer.weight_g": (9, 1), "head.last_layer.weight_v": (9, 8)}
    return {"teacher": fake(backbone | head), "student": fake(prefixed("module.", backbone), 500),
            "epoch": 100, "args": argparse.Namespace(arch="vit_small")}  # fmt: skip


def dinov2(registers=False):
    shapes = vit_shapes(384, 12, 1370, 14, layer_scale=True) | {"mask_token": (1, 384)}
    return fake(shapes | ({"register_tokens": (1, 4, 384)} if registers else {}))


def dinov2_training():
    backbone = vit_shapes(384, 12, 1370, 14, layer_scale=True, chunk="0.") | {
        "mask_token": (1, 384)
    }
    heads = {"dino_head.mlp.0.weight": (8, 8), "ibot_head.mlp.0.weight": (8, 8)}
    return {"teacher": fake(prefixed("backbone.", backbone) | heads)}


FILES = {
    "moco_v1": (lambda: moco({"fc.weight": (128, 2048), "fc.bias": (128,)}), "resnet50",
                "module.encoder_q.", 224, {"module.queue", "module.encoder_q.fc.weight"}),
    "moco_v2": (lambda: moco({"fc.0.weight": (2048, 2048), "fc.0.bias": (2048,),
                              "fc.2.weight": (128, 2048), "fc.2.bias": (128,)}),
                "resnet50", "module.encoder_q.", 224,
                {"module.queue_ptr", "module.encoder_q.fc.2.bias"}),
    "moco_v3": (moco_v3, "vit_small_moco", "module.base_encoder.", 224,
                {"module.base_encoder.head.0.weight", "module.predictor.0.weight"}),
    "mae": (mae, "vit_base_patch16_224", "", 224, {"mask_token", "decoder_pred.weight"}),
    "dino": (dino, "vit_small_patch8_224", "backbone.", 224,
             {"head.mlp.0.weight", "head.last_layer.weight_g"}),
    "dinov2": (dinov2, "vit_small_patch14_dinov2", "", 518, {"mask_token"}),
    "dinov2_training": (dinov2_training, "vit_small_patch14_dinov2", "backbone.", 518,
                        {"backbone.mask_token", "dino_head.mlp.0.weight"}),
}  # fmt: skip


# ResNet-50 twice and ViT-B cost most of the time: they are for `make test-all`.
@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[pytest.mark.slow] * (name in ("moco_v2", "mae"))) for name in FILES
])  # fmt: skip
def test_official_checkpoints_fill_every_tensor_of_the_backbone(name, tmp_path, capsys):
    make, backbone, prefix, size, unused = FILES[name]
    content = make()
    torch.save(content, tmp_path / "official.pth")
    run = tmp_path / "run"
    assert main(["import", str(tmp_path / "official.pth"), "--out", str(run)]) == 0
    model, about = load_backbone(run)
    assert about["backbone"] == backbone and about["image_size"] == size
    record = json.loads((run / "import.json").read_text())
    tensors = next(
        (content[k] for k in ("state_dict", "model", "teacher") if k in content), content
    )
    assert record["used"].keys() | set(record["unused"]) == tensors.keys()
    assert not record["used"].keys() & set(record["unused"]) and unused <= set(record["unused"])
    state = model.state_dict()
    assert set(record["used"].values()) == state.keys()
    for key, ours in record["used"].items():
        assert key.startswith(prefix)
        assert (state[ours] == tensors[key].flatten()[0].to(state[ours].dtype)).all(), key
    printed = capsys.readouterr().out
    assert f"used {len(state)} keys" in printed and f"not used {len(record['unused'])}" in printed


def test_registers_take_the_position_of_the_class_token_in(tmp_path):
    content = dinov2(registers=True)
    save_file({k: v.contiguous() for k, v in content.items()}, tmp_path / "reg.safetensors")
    result = import_weights(tmp_path / "reg.safetensors", tmp_path / "run")
    assert result.backbone == "vit_small_patch14_reg4_dinov2"
    state = load_backbone(tmp_path / "run")[0].state_dict()
    number = {key: value.flatten()[0].item() for key, value in content.items()}
    assert state["pos_embed"].shape == (1, 1369, 384)
    assert (state["cls_token"] == number["cls_token"] + number["pos_embed"]).all()
    assert (state["reg_token"] == number["register_tokens"]).all()


def test_two_loads_of_an_official_file_say_the_same_of_a_black_image(tmp_path):
    torch.manual_seed(0)
    shapes = vit_shapes(384, 12, 1370, 14, layer_scale=True) | {"mask_token": (1, 384)}
    torch.save(
        {name: 0.1 * torch.randn(shape) for name, shape in shapes.items()}, tmp_path / "a.pth"
    )
    black, said = torch.zeros(1, 3, 28, 28), []
    for run in ("one", "two"):
        import_weights(tmp_path / "a.pth", tmp_path / run)
        with torch.no_grad():
            said.append(encode(load_backbone(tmp_path / run)[0].eval(), black))
    assert said[0].shape == (1, 384) and said[0].isfinite().all() and said[0].std() > 1e-3
    assert torch.equal(*said)


def test_moco_v3_s_vit_has_twelve_heads():
    assert backbones.build("vit_small_moco", image_size=224).blocks[0].attn.num_heads == 12


class Harmful:
    def __reduce__(self):
        return (print, ("code has run",))


@pytest.mark.parametrize("name, content, words", [
    ("a.pth", b"no weights at all", "cannot be read as weights"),
    ("a.safetensors", b"no weights at all", "cannot be read as weights"),
    ("a.pth", b"", "cannot be read as weights"),
    ("a.pth", {"state_dict": Harmful()}, "cannot be read as weights"),
    ("a.pth", [1, 2], "holds no weights of a known layout"),
    ("a.pth", {"epoch": 3}, "holds no weights of a known layout"),
    ("a.pth", {"layer.weight": torch.zeros(2)}, "say which with --backbone"),
    ("a.pth", {"patch_embed.proj.weight": torch.zeros(2)}, "instead of 4 sizes above 0"),
    ("a.pth", {"pos_embed": torch.zeros(0, 3, 2)}, "instead of 3 sizes above 0"),
    ("a.pth", {"register_tokens": torch.zeros(1, 4, 2)}, "no cls_token and no pos_embed"),
    ("a.pth", None, "there is no file"),
])  # fmt: skip
def test_a_file_that_cannot_be_used_is_one_line_and_exit_code_2(
    name, content, words, tmp_path, capsys
):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    assert main(["import", str(path), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1
    assert "code has run" not in said.out and not (tmp_path / "run").exists()


def test_missing_and_misshapen_tensors_are_named(tmp_path):
    state = dict(backbones.build("resnet18", image_size=224).state_dict())
    del state["layer1.0.bn1.weight"]
    state["conv1.weight"] = torch.zeros(64, 3, 5, 5)
    state["extra"] = torch.zeros(1)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(WeightsError) as error:
        import_weights(tmp_path / "a.pth", tmp_path / "run")
    message = str(error.value)
    assert "it lacks layer1.0.bn1.weight" in message and "it has besides extra" in message
    assert "conv1.weight (64, 3, 5, 5) instead of (64, 3, 7, 7)" in message


def test_an_unknown_backbone_and_a_folder_in_use_are_told(tmp_path, capsys):
    torch.save(backbones.build("resnet18", image_size=224).state_dict(), tmp_path / "a.pth")
    words = ["import", str(tmp_path / "a.pth"), "--out", str(tmp_path / "run")]
    assert main([*words, "--backbone", "resnet81"]) == 2
    assert "unknown backbone 'resnet81'" in capsys.readouterr().err
    assert main(words) == 0 and main(words) == 2
    assert "already holds a backbone" in capsys.readouterr().err


def test_imported_weights_are_judged_and_have_an_untrained_twin(tmp_path):
    shapes = vit_shapes(192, 12, 197, 16)
    torch.manual_seed(0)
    save_file(
        {name: torch.randn(shape) for name, shape in shapes.items()}, tmp_path / "a.safetensors"
    )
    assert import_weights(tmp_path / "a.safetensors", tmp_path / "run").backbone.startswith(
        "vit_tiny"
    )
    trained, untrained = (open_backbone(tmp_path / "run", untrained=u)[0] for u in (False, True))
    x = torch.randn(2, 3, 224, 224)
    assert trained(x).shape == (2, 192) and not torch.allclose(trained(x), untrained(x))


def saved(tmp_path, name, size):
    """A run folder with random weights of a backbone."""
    torch.manual_seed(0)
    model = backbones.build(name, image_size=size).eval()
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.save_backbone(model, {"method": "simclr", "data": "", "kind": "images", "backbone": name,
                              "image_size": size, "channels": 3, "mean": [0.4] * 3,
                              "std": [0.2] * 3})  # fmt: skip
    return run.path, model, torch.randn(2, 3, size, size)


@pytest.mark.parametrize("name, size", [("resnet18", 64), ("vit_tiny_p4", 32)])
def test_timm_computes_what_we_do(name, size, tmp_path):
    run, model, x = saved(tmp_path, name, size)
    line = export(run, "timm", tmp_path / "timm.safetensors")
    theirs = eval(line, {"timm": timm}).eval()
    torch.testing.assert_close(theirs(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("name, size", [("resnet18", 64), ("vit_tiny_p4", 32)])
def test_a_hub_folder_is_taken_by_timm(name, size, tmp_path):
    run, model, x = saved(tmp_path, name, size)
    export(run, "huggingface", tmp_path / "hub")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    torch.testing.assert_close(theirs(x), model(x), rtol=0, atol=0)
    assert theirs.pretrained_cfg["mean"] in ([0.4] * 3, (0.4,) * 3)


def test_torchvision_s_resnet_computes_what_ours_does(tmp_path):
    run, model, x = saved(tmp_path, "resnet18", 64)
    assert main(["export", str(run), "--to", "torchvision", "--out", str(tmp_path / "a.pth")]) == 0
    theirs = torchvision.models.resnet18().eval()
    state = torch.load(tmp_path / "a.pth", weights_only=True)
    left = theirs.load_state_dict(state, strict=False)
    assert left.missing_keys == ["fc.weight", "fc.bias"] and not left.unexpected_keys
    theirs.fc = torch.nn.Identity()
    torch.testing.assert_close(theirs(x), model(x), atol=1e-5, rtol=1e-5)


def test_torchvision_s_vit_computes_what_ours_does(tmp_path):
    run, model, x = saved(tmp_path, "vit_tiny_p4", 32)
    export(run, "torchvision", tmp_path / "a.pth")
    theirs = torchvision.models.VisionTransformer(32, 4, 12, 3, 192, 768).eval()
    left = theirs.load_state_dict(torch.load(tmp_path / "a.pth", weights_only=True), strict=False)
    assert left.missing_keys == ["heads.head.weight", "heads.head.bias"]
    assert not left.unexpected_keys
    theirs.heads = torch.nn.Identity()
    torch.testing.assert_close(theirs(x), model(x), atol=1e-4, rtol=1e-4)


def test_safetensors_come_back_as_they_were(tmp_path):
    run, model, _ = saved(tmp_path, "convnet4", 16)
    export(run, "safetensors", tmp_path / "a.safetensors")
    state = load_file(tmp_path / "a.safetensors")
    assert state.keys() == model.state_dict().keys()
    again, about = load_backbone(tmp_path / "a.safetensors")
    assert about["backbone"] == "convnet4" and math.isclose(about["std"][0], 0.2)
    for key, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[key])


@pytest.mark.parametrize("name, size, to, words", [
    ("convnet4", 16, "timm", "timm has no model like convnet4"),
    ("convnet4", 16, "torchvision", "torchvision has no model like convnet4"),
    ("resnet18", 32, "huggingface", "begins with a 3 x 3 convolution"),
])  # fmt: skip
def test_a_layout_without_a_place_is_refused(name, size, to, words, tmp_path, capsys):
    run, _, _ = saved(tmp_path, name, size)
    assert main(["export", str(run), "--to", to, "--out", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err
