"""MAE's step against the official one, which is written out plainly here."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_mae import HEADS, method, official_patchify

# The official step, from weights under the official names; nothing of sslops or timm.


def linear(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def layer_norm(w, name, x):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)


def block(w, name, x, heads):
    B, L, D = x.shape
    h = linear(w, f"{name}.attn.qkv", layer_norm(w, f"{name}.norm1", x))
    q, k, v = h.reshape(B, L, 3, heads, D // heads).permute(2, 0, 3, 1, 4)
    attention = (q @ k.transpose(-2, -1) / math.sqrt(D // heads)).softmax(-1)
    x = x + linear(w, f"{name}.attn.proj", (attention @ v).transpose(1, 2).reshape(B, L, D))
    h = F.gelu(linear(w, f"{name}.mlp.fc1", layer_norm(w, f"{name}.norm2", x)))
    return x + linear(w, f"{name}.mlp.fc2", h)


def blocks(w, name, x, heads):
    for i in range(len({key.split(".")[1] for key in w if key.startswith(f"{name}.")})):
        x = block(w, f"{name}.{i}", x, heads)
    return x


def official_step(w, x, noise, *, p, ratio=0.75, decoder_heads=2, norm_pix=True):
    """Loss, mask and latent as in models_mae.py."""
    h = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=p)
    h = h.flatten(2).transpose(1, 2) + w["pos_embed"][:, 1:]
    B, L, D = h.shape
    keep = int(L * (1 - ratio))
    shuffle = noise.argsort(dim=1)
    restore = shuffle.argsort(dim=1)
    h = torch.gather(h, 1, shuffle[:, :keep, None].repeat(1, 1, D))
    mask = torch.ones(B, L)
    mask[:, :keep] = 0
    mask = mask.gather(1, restore)
    cls = (w["cls_token"] + w["pos_embed"][:, :1]).expand(B, -1, -1)
    latent = layer_norm(w, "norm", blocks(w, "blocks", torch.cat([cls, h], 1), HEADS))

    y = linear(w, "decoder_embed", latent)
    y_ = torch.cat([y[:, 1:], w["mask_token"].repeat(B, L - keep, 1)], 1)
    y_ = y_.gather(1, restore[:, :, None].repeat(1, 1, y.shape[2]))
    y = torch.cat([y[:, :1], y_], 1) + w["decoder_pos_embed"]
    y = layer_norm(w, "decoder_norm", blocks(w, "decoder_blocks", y, decoder_heads))
    pred = linear(w, "decoder_pred", y)[:, 1:]

    target = official_patchify(x, p)
    if norm_pix:
        mean, var = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
        target = (target - mean) / (var + 1e-6) ** 0.5
    loss = (((pred - target) ** 2).mean(-1) * mask).sum() / mask.sum()
    return loss, mask, latent


def agree(ours, image_size, p, **options):
    """Loss and gradients of our step against those of the official one."""
    torch.manual_seed(1)
    x, noise = torch.randn(3, 3, image_size, image_size), torch.rand(3, (image_size // p) ** 2)
    outputs = ours([x], 0, noise=noise)
    outputs["loss"].backward()
    state = ours.official_state_dict()
    trained = {n.removeprefix("backbone."): v for n, v in ours.named_parameters()
               if v.requires_grad}  # fmt: skip
    w = {n: v.detach().clone().requires_grad_(n in trained) for n, v in state.items()}
    loss, mask, _ = official_step(w, x, noise, p=p, **options)
    loss.backward()
    assert outputs["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert outputs["mask_ratio"].item() == pytest.approx(mask.mean().item())
    for name, weight in trained.items():
        scale = w[name].grad.abs().max()
        torch.testing.assert_close(weight.grad, w[name].grad, rtol=1e-5, atol=1e-5 * scale.item())
        assert scale > 0, name


@pytest.mark.parametrize(
    "image_size, patch_size, target",
    [(16, 4, "norm_pixel"), (32, 4, "norm_pixel"), (32, 4, "pixel"), (48, 16, "norm_pixel")],
)
def test_loss_and_gradients_are_those_of_the_official_step(image_size, patch_size, target):
    ours = method(image_size, patch_size, target=target)
    agree(ours, image_size, patch_size, norm_pix=target == "norm_pixel")


def test_they_are_for_another_ratio_and_decoder():
    ours = method(32, mask_ratio=0.4, decoder_width=32, decoder_depth=1, decoder_heads=4)
    agree(ours, 32, 4, ratio=0.4, decoder_heads=4)
