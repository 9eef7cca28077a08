"""The CUDA kernels of masking against the specification on the CPU, replayed graphs, no waiting."""

import math

import pytest
import torch
from gpu_helpers import captured, no_waiting
from masking_helpers import DTYPES, assert_same, by_dtype, gradients, mae_random_masking

import sslops
from sslops.ops.masking.cases import CASES, Case

pytestmark = pytest.mark.gpu
LARGE = [
    Case("longest", 2, 8192, 8, mask_ratio=0.9),
    Case("many samples", 70_000, 4, 2, mask_ratio=0.5),
    Case("vit-b", 64, 196, 768, P=1),
    Case("one sample of long rows", 1, 50, 4104),
]
by_name = pytest.mark.parametrize("case", CASES + LARGE, ids=lambda c: c.name)


def on_cpu(tensors):
    return [t.cpu() for t in tensors]


def both(function, tensors):
    """Values and gradients on the GPU (kernels) and on the CPU (specification)."""

    def run(device, backend):
        moved = [t.detach().to(device) for t in tensors]
        return on_cpu(gradients(lambda *t: function(*t, device=device, backend=backend), moved))

    return run("cuda", "cuda"), run("cpu", "reference")


@by_name
@by_dtype
def test_random_masking_is_the_specification_bit_for_bit(case, dtype):
    x, noise = case.tokens(dtype=dtype)
    ours = sslops.random_masking(
        x.cuda(), case.mask_ratio, noise=noise.cuda(), num_prefix_tokens=case.P, backend="cuda"
    )
    x_kept, mask, ids_restore = on_cpu(ours)
    assert_same(
        (x_kept[:, case.P :], mask, ids_restore),
        mae_random_masking(x[:, case.P :], case.mask_ratio, noise),
    )
    assert torch.equal(x_kept[:, : case.P], x[:, : case.P])

    def kept(x, device, backend):
        return sslops.random_masking(
            x, case.mask_ratio, noise=noise.to(device), num_prefix_tokens=case.P, backend=backend
        )[0]

    assert_same(*both(kept, [x]))


@pytest.mark.parametrize("length", [1, 2, 3, 31, 33, 64, 100, 196, 1000, 8191])
def test_special_noise_is_ordered_as_by_the_stable_argsort(length):
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-45, -1e-45, 1])
    noise = special[torch.randint(0, len(special), (3, length))]
    x = torch.randn(3, length, 4)
    ours = sslops.random_masking(x.cuda(), 0.5, noise=noise.cuda(), backend="cuda")
    assert_same(on_cpu(ours), mae_random_masking(x, 0.5, noise))


@pytest.mark.parametrize("seed, step, first", [(0, 0, 0), (2**63 - 1, 2**32 - 1, 2**32 - 2)])
@pytest.mark.parametrize("length", [1, 3, 196, 1025])
def test_the_gpu_draws_the_bits_of_the_cpu(seed, step, first, length):
    generator = sslops.CounterGenerator(seed, step, first)
    ours = sslops.sample_mask(5, length, 0.5, generator=generator, device="cuda", backend="cuda")
    plain = sslops.sample_mask(5, length, 0.5, generator=generator, backend="reference")
    assert_same(on_cpu(ours), plain)
    u = generator.uniform(5, length, device="cuda")
    assert torch.equal(u.cpu(), generator.uniform(5, length))


@pytest.mark.parametrize("strategy", ["block", "grid"])
def test_strategies_choose_the_same_tokens_on_both_devices(strategy):
    generator = sslops.CounterGenerator(3)
    options = dict(strategy=strategy, generator=generator)
    with no_waiting():
        ours = sslops.sample_mask(64, 196, 0.75, device="cuda", backend="cuda", **options)
    plain = sslops.sample_mask(64, 196, 0.75, backend="reference", **options)
    assert_same(on_cpu(ours), plain)


@by_name
@by_dtype
def test_gather_tokens_agrees_exactly(case, dtype):
    x, noise = case.tokens(dtype=dtype)
    ids_keep = sslops.sample_mask(*noise.shape, case.mask_ratio, noise=noise).ids_keep

    def gather(x, device, backend):
        return sslops.gather_tokens(
            x, ids_keep.to(device), num_prefix_tokens=case.P, backend=backend
        )

    assert_same(*both(gather, [x]))


@by_dtype
@pytest.mark.parametrize(
    "B, C, H, W, p",
    [(2, 3, 8, 8, 4), (1, 3, 6, 10, 2), (2, 1, 4, 4, 1), (1, 4, 28, 14, 14), (8, 3, 224, 224, 16)],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gather_patches_agrees_exactly(B, C, H, W, p, layout, dtype):
    images = torch.randn(B, C, H, W).to(dtype)
    ids_keep = torch.rand(B, (H // p) * (W // p)).argsort(dim=1)[:, : H // p]

    def gather(images, device, backend):
        images = images.contiguous(memory_format=layout)
        return sslops.gather_patches(images, ids_keep.to(device), p, backend=backend)

    assert_same(*both(gather, [images]))


@by_name
@pytest.mark.parametrize("x_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("parameter_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("positions", ["none", "shared", "per sample"])
def test_restore_tokens_agrees(case, positions, x_dtype, parameter_dtype):
    x_kept, ids_restore, token, position = case.decoder()
    tensors = [x_kept.to(x_dtype), token.to(parameter_dtype), position.to(parameter_dtype)]
    if positions == "per sample":
        tensors[2] = tensors[2] + torch.randn(case.B, 1, 1).to(tensors[2])
    if positions == "none":
        tensors = tensors[:2]

    def restore(x, token, *position, device, backend):
        return sslops.restore_tokens(
            x, ids_restore.to(device), token, *position, num_prefix_tokens=case.P, backend=backend
        )

    ours, plain = both(restore, tensors)
    exact = on_cpu(
        gradients(lambda *t: restore(*t, device="cpu", backend="reference"),
                  [t.double() for t in tensors])
    )  # fmt: skip
    assert_same(ours[:2], plain[:2])
    for o, p, e in zip(ours[2:], plain[2:], exact[2:], strict=True):
        rounding = torch.finfo(ours[0].dtype).eps * e.abs().max()
        # A sum over many samples rounds often, and the specification's may be right by chance.
        allowed = 2 * (p.double() - e).abs().max() + (2 + math.log2(case.B)) * rounding
        assert (o.double() - e).abs().max() <= allowed


@pytest.mark.parametrize("offset", [1, 2, 4, 8])
@pytest.mark.parametrize("width", [1, 7, 8, 12, 16, 64])
@by_dtype
def test_rows_at_any_address(offset, width, dtype):
    memory = torch.randn(offset + 2 * 20 * width).to(dtype)
    noise = torch.rand(2, 20)

    def kept(memory, device, backend):
        x = memory[offset:].view(2, 20, width)
        return sslops.random_masking(x, 0.5, noise=noise.to(device), backend=backend)[0]

    assert_same(*both(kept, [memory]))


def test_results_are_the_same_in_twenty_runs():
    x_kept, ids_restore, token, position = CASES[5].decoder("cuda")
    x, noise = CASES[5].tokens("cuda")

    def run():
        masked = gradients_on_gpu(
            lambda x: sslops.random_masking(x, 0.75, noise=noise, backend="cuda")[0], x
        )
        restored = gradients_on_gpu(
            lambda *t: sslops.restore_tokens(t[0], ids_restore, *t[1:], backend="cuda"),
            x_kept, token, position,
        )  # fmt: skip
        return masked + restored

    first = run()
    for _ in range(19):
        assert_same(run(), first)


def gradients_on_gpu(function, *tensors):
    tensors = [t.detach().requires_grad_() for t in tensors]
    out = function(*tensors)
    return [out, *torch.autograd.grad(out, tensors, torch.ones_like(out))]


# ------------------------------------------------------------------ graphs, waiting, launches


def step_of_mae(x, noise, images, token, position):
    x_kept, mask, ids_restore = sslops.random_masking(x, 0.75, noise=noise, backend="cuda")
    out = sslops.restore_tokens(x_kept, ids_restore, token, position, backend="cuda")
    ids_keep = sslops.sample_mask(len(x), 16, 0.75, noise=noise, backend="cuda").ids_keep
    patches = sslops.gather_patches(images, ids_keep, 4, backend="cuda")
    again = sslops.gather_tokens(x, ids_keep, backend="cuda")
    loss = (out * out).mean() + patches.square().mean() + again.mean() + mask.mean()
    return [loss, *torch.autograd.grad(loss, (x, images, token, position))]


def inputs_of_mae():
    generator = torch.Generator().manual_seed(4)
    shapes = (3, 16, 24), (3, 16), (3, 3, 16, 16), (24,), (1, 16, 24)
    tensors = [torch.randn(s, generator=generator).cuda() for s in shapes]
    return [t.requires_grad_(i != 1) for i, t in enumerate(tensors)]


def test_forward_and_backward_never_wait_for_the_device():
    tensors = inputs_of_mae()
    step_of_mae(*tensors)
    with no_waiting():
        step_of_mae(*tensors)


def test_a_replayed_graph_follows_its_noise():
    tensors = inputs_of_mae()
    graph, outputs = captured(lambda: step_of_mae(*tensors))
    for seed in range(3):
        torch.manual_seed(seed)
        with torch.no_grad():
            tensors[1].copy_(torch.rand(3, 16))
            tensors[0].copy_(torch.randn(3, 16, 24))
        graph.replay()
        replayed = [t.clone() for t in outputs]
        for a, b in zip(replayed, step_of_mae(*tensors), strict=True):
            torch.testing.assert_close(a, b)


def test_a_replayed_graph_follows_the_step_of_its_generator():
    step = torch.zeros((), dtype=torch.int64, device="cuda")

    def masks():
        ids = sslops.sample_mask(
            4, 64, 0.5, generator=sslops.CounterGenerator(9, step), backend="cuda"
        )
        step.add_(1)
        return ids

    graph, ids = captured(masks)
    step.fill_(7)
    for number in (7, 8, 9):
        graph.replay()
        fixed = sslops.CounterGenerator(9, number)
        assert_same(on_cpu(ids), sslops.sample_mask(4, 64, 0.5, generator=fixed))


def test_ids_mask_and_gather_are_one_launch(monkeypatch):
    # Filling new memory, as tests have it done, would count as a launch for each output.
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    x, noise = CASES[5].tokens("cuda")
    sslops.random_masking(x, 0.75, noise=noise, backend="cuda")
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        sslops.random_masking(x, 0.75, noise=noise, backend="cuda")
        torch.cuda.synchronize()
    kernels = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    assert len(kernels) == 1 and "random_masking_kernel" in kernels[0].name


def test_runs_on_the_current_stream():
    x, noise = LARGE[2].tokens("cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        x.add_(1)
        ours = sslops.random_masking(x, 0.75, noise=noise, num_prefix_tokens=1, backend="cuda")
    stream.synchronize()
    plain = sslops.random_masking(x, 0.75, noise=noise, num_prefix_tokens=1, backend="reference")
    assert_same(ours, plain)


# ------------------------------------------------------------------ bad indices


@pytest.mark.parametrize("bad", [5, -1, -2, 2**40, -(2**63)])
@by_dtype
def test_ids_out_of_range_give_nan_rows_and_touch_nothing_else(bad, dtype):
    x = torch.randn(2, 5, 24, device="cuda", dtype=dtype)
    ids = torch.tensor([[0, 1, 2, 3, 4], [4, 3, bad, 1, 0]], device="cuda")
    with no_waiting():
        kept = sslops.gather_tokens(x, ids, backend="cuda")
        restored = sslops.restore_tokens(x[:, :2], ids, x[0, 0], backend="cuda")
    for rows in (kept, restored):
        assert rows[1, 2].isnan().all()
        assert rows.isnan().sum() == 24
    assert torch.equal(kept[0], x[0]) and torch.equal(kept[1, 4], x[1, 0])
    images = torch.randn(2, 3, 4, 20, device="cuda", dtype=dtype)
    patches = sslops.gather_patches(images, ids, 4, backend="cuda")
    assert patches[1, 2].isnan().all() and patches.isnan().sum() == 48


def test_the_gradient_of_a_token_named_twice_is_nan():
    x = torch.randn(2, 5, 24, device="cuda", requires_grad=True)
    ids = torch.tensor([[0, 1], [3, 3]], device="cuda")
    sslops.gather_tokens(x, ids, backend="cuda").sum().backward()
    assert x.grad[1, 3].isnan().all() and x.grad.isnan().sum() == 24
    assert (x.grad[0, :2] == 1).all() and (x.grad[0, 2:] == 0).all()


def test_longer_samples_fall_back_to_the_specification():
    x = torch.randn(1, 8193, 2, device="cuda")
    with pytest.raises(RuntimeError, match="takes up to 8192 tokens"):
        sslops.random_masking(x, 0.5, backend="cuda")
    assert sslops.random_masking(x, 0.5)[1].sum() == 8193 - 4096


def test_devices_must_agree():
    x = torch.randn(2, 5, 3, device="cuda")
    with pytest.raises(ValueError, match="noise must be"):
        sslops.random_masking(x, 0.5, noise=torch.rand(2, 5))
    with pytest.raises(ValueError, match="generator must be on cuda"):
        sslops.random_masking(x, 0.5, generator=torch.Generator())
    with pytest.raises(ValueError, match="must be on cuda"):
        sslops.gather_tokens(x, torch.zeros(2, 2, dtype=torch.int64))
