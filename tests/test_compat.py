"""The drop-in classes against the packages they replace, values and gradients."""

import inspect

import pytest
import torch

from sslops import compat


def package(name):
    return pytest.importorskip(name, reason=f"{name} is not installed (pip install sslops[bench])")


def views(N=12, D=16, dtype=torch.float64):
    z0, z1 = torch.randn(2, N, D, dtype=dtype)
    return z0.requires_grad_(), (z0.detach() + z1).requires_grad_()


def assert_same(ours, theirs, inputs, rtol=1e-10):
    """Equal values, and equal gradients of all inputs."""
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=0)
    for a, b in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs),
                    strict=True):  # fmt: skip
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * b.abs().max().item())


def same_arguments(ours, theirs):
    """Same names, order and defaults, as far as ours go."""
    a, b = (list(inspect.signature(f).parameters.values()) for f in (ours, theirs))
    for x, y in zip(a, b, strict=False):
        assert (x.name, x.default) == (y.name, y.default)
    return {p.name for p in b} - {p.name for p in a}


def test_arguments_are_those_of_the_packages():
    lightly, open_clip = package("lightly.loss"), package("open_clip")
    assert same_arguments(compat.NTXentLoss, lightly.NTXentLoss) == set()
    assert same_arguments(compat.ClipLoss, open_clip.ClipLoss) == {"use_horovod"}
    assert same_arguments(compat.ClipLoss.forward, open_clip.ClipLoss.forward) == set()
    theirs = package("info_nce").InfoNCE
    assert same_arguments(compat.InfoNCE, theirs) == set()
    assert same_arguments(compat.InfoNCE.forward, theirs.forward) == set()


@pytest.mark.parametrize("N, temperature", [(12, 0.5), (1, 0.5), (33, 0.07)])
def test_ntxentloss_equals_lightly(N, temperature):
    theirs = package("lightly.loss").NTXentLoss(temperature=temperature)
    z = views(N)
    assert_same(compat.NTXentLoss(temperature=temperature)(*z), theirs(*z), z)


def test_ntxentloss_with_a_memory_bank_equals_lightly_until_its_bank_loses_keys():
    theirs = package("lightly.loss").NTXentLoss(0.2, memory_bank_size=(12, 16))
    torch.manual_seed(3)
    theirs.memory_bank._init_memory_bank((12, 16))
    torch.manual_seed(3)
    ours = compat.NTXentLoss(0.2, memory_bank_size=(12, 16))
    for _ in range(5):  # batches of 4 fill the bank of 12 without a rest
        z = views(4, dtype=torch.float32)
        assert_same(ours(*z), theirs(*z), z, rtol=2e-6)
        torch.testing.assert_close(ours.memory_bank.bank, theirs.memory_bank.bank)
    assert ours.memory_bank.bank_ptr.item() == theirs.memory_bank.bank_ptr.item() == 8


def test_memory_bank_stands_still_without_gradients():
    loss = compat.NTXentLoss(memory_bank_size=(8, 16))
    before = loss.memory_bank.bank.clone()
    z0, z1 = views(4, dtype=torch.float32)
    loss(z0.detach(), z1)
    with torch.no_grad():
        loss(z0, z1)
    assert torch.equal(loss.memory_bank.bank, before)


@pytest.mark.parametrize("sizes", [[4, 4, 4], [3, 9, 1], [25], [10, 10], [1] * 13, [7, 12, 2]])
def test_memory_bank_keeps_the_last_keys_whatever_the_batches(sizes):
    """lightly drops the keys that do not fit before the end of its bank."""
    bank = compat.MemoryBank((10, 2))
    before = bank.bank.clone()
    keys = torch.arange(1.0, sum(sizes) + 1)[:, None].expand(-1, 2)
    for batch in keys.split(sizes):
        bank.enqueue_(batch)
    expected = before
    for i, key in enumerate(keys):
        expected[i % 10] = key
    assert torch.equal(bank.bank, expected)
    assert bank.bank_ptr.item() == len(keys) % 10


def test_memory_bank_survives_a_resume():
    """lightly's is not in the state_dict."""
    loss = compat.NTXentLoss(memory_bank_size=(10, 16))
    for _ in range(3):
        loss(*views(4, dtype=torch.float32))
    resumed = compat.NTXentLoss(memory_bank_size=(10, 16))
    resumed.load_state_dict(loss.state_dict())
    z = views(4, dtype=torch.float32)
    assert torch.equal(loss(*z), resumed(*z))
    assert torch.equal(loss(*z), resumed(*z))  # the banks took the same keys at the same place
    assert compat.NTXentLoss().state_dict() == {}


def test_queue_is_updated_after_the_loss():
    """Else each row's positive is among its negatives (stable-pretraining's MoCo v2)."""
    loss = compat.NTXentLoss(temperature=0.1, memory_bank_size=(4, 4))
    loss.memory_bank.bank.copy_(-torch.eye(4))
    z = torch.eye(4).requires_grad_()
    # Negatives -e_j: one at -10, three at 0, against a positive at 10.
    expected = torch.log1p(3 * torch.exp(torch.tensor(-10.0)) + torch.exp(torch.tensor(-20.0)))
    torch.testing.assert_close(loss(z, z), expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(loss.memory_bank.bank, torch.eye(4))


@pytest.mark.parametrize("size", [5, -1, (-1, 4), (5,), (5, 4, 3)])
def test_wrong_memory_bank_sizes_raise_as_in_lightly(size):
    theirs = package("lightly.loss").NTXentLoss
    for loss in (theirs, compat.NTXentLoss):
        with pytest.raises(ValueError):
            loss(memory_bank_size=size)


def test_zero_temperature_raises():
    for loss in (package("lightly.loss").NTXentLoss, compat.NTXentLoss):
        with pytest.raises(ValueError, match="temperature"):
            loss(temperature=0.0)


def unit_views(N=12, D=16):
    return [torch.nn.functional.normalize(z.detach(), dim=-1).requires_grad_()
            for z in views(N, D)]  # fmt: skip


@pytest.mark.parametrize("cache_labels", [False, True])
def test_cliploss_equals_open_clip(cache_labels):
    theirs = package("open_clip").ClipLoss(cache_labels=cache_labels)
    ours = compat.ClipLoss(cache_labels=cache_labels)
    scale = torch.tensor(14.3, dtype=torch.float64, requires_grad=True)
    for N in (12, 5, 1):
        z = unit_views(N)
        assert_same(ours(*z, scale), theirs(*z, scale), [*z, scale])
        torch.testing.assert_close(ours(*z, 14.3), theirs(*z, 14.3))
    z = unit_views()
    (name, loss), = ours(*z, scale, output_dict=True).items()  # fmt: skip
    assert name == "contrastive_loss" and torch.equal(loss, ours(*z, scale))


def test_cliploss_with_a_logit_bias_equals_open_clip():
    theirs = package("open_clip").ClipLoss()
    scale = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-10.0, dtype=torch.float64, requires_grad=True)
    z = unit_views()
    ours = compat.ClipLoss()(*z, scale, bias)
    assert_same(ours, theirs(*z, scale, bias), [*z, scale])
    (of_bias,) = torch.autograd.grad(compat.ClipLoss()(*z, scale, bias), bias)
    (of_theirs,) = torch.autograd.grad(theirs(*z, scale, bias), bias)
    assert of_bias == 0 and of_theirs.abs() < 1e-15


def test_cliploss_in_half_precision_keeps_its_scale():
    """1 / 100 as a float16 would be 0.01000213: a logit of 100 off by 0.02."""
    z = [z.detach().half() for z in unit_views(8)]
    loss = compat.ClipLoss()(*z, torch.tensor(99.0, dtype=torch.float16))
    exact = compat.ClipLoss()(*(x.double() for x in z), 99.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-5)


def test_cliploss_names_a_world_that_is_not_there():
    with pytest.raises(ValueError, match="world_size must be that of the default process group, 1"):
        compat.ClipLoss(rank=0, world_size=2)(*unit_views(), 10.0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("mode, shape", [("unpaired", None), ("unpaired", (7, 16)),
                                         ("paired", (12, 7, 16))])  # fmt: skip
def test_infonce_equals_info_nce_pytorch(mode, shape, reduction):
    theirs = package("info_nce").InfoNCE(0.2, reduction, mode)
    ours = compat.InfoNCE(0.2, reduction, mode)
    tensors = [*views()]
    if shape is not None:
        tensors.append(torch.randn(shape, dtype=torch.float64, requires_grad=True))
    weights = torch.rand(12 if reduction == "none" else 1, dtype=torch.float64)
    torch.testing.assert_close(ours(*tensors), theirs(*tensors))
    assert_same((ours(*tensors) * weights).sum(), (theirs(*tensors) * weights).sum(), tensors)


@pytest.mark.parametrize(
    "mode, shapes",
    [
        ("unpaired", [(4,), (4, 8)]),
        ("unpaired", [(4, 8), (2, 4, 8)]),
        ("unpaired", [(4, 8), (5, 8)]),
        ("unpaired", [(4, 8), (4, 9)]),
        ("unpaired", [(4, 8), (4, 8), (4, 3, 8)]),
        ("unpaired", [(4, 8), (4, 8), (3, 9)]),
        ("paired", [(4, 8), (4, 8), (3, 8)]),
        ("paired", [(4, 8), (4, 8), (5, 3, 8)]),
    ],
)
def test_wrong_shapes_raise_as_in_info_nce_pytorch(mode, shapes):
    for loss in (package("info_nce").InfoNCE, compat.InfoNCE):
        with pytest.raises(ValueError, match=r"query|positive_key|negative_keys"):
            loss(negative_mode=mode)(*(torch.randn(s) for s in shapes))


def test_swapping_the_import_trains_the_same_weights():
    """Five steps of SGD with lightly's loss and with ours end at the same weights."""
    ends = []
    for loss in (package("lightly.loss").NTXentLoss(0.1), compat.NTXentLoss(0.1)):
        torch.manual_seed(1)
        model = torch.nn.Linear(8, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(5):
            optimizer.zero_grad()
            loss(model(torch.randn(16, 8)), model(torch.randn(16, 8))).backward()
            optimizer.step()
        ends.append(model.weight.detach())
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)
