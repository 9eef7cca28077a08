"""The CUDA kernels themselves, run on the CPU and held to the specification.

csrc/*.cu is compiled as C++ against a small stand-in for CUDA (cuda_on_cpu/cuda_runtime.h). What a
GPU would compute differently is only the rounding of its conversions and square roots, which are
IEEE's on both, and the timing. Every block, thread, barrier and index is that of the GPU.
"""

import functools
import importlib.util
import re
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from masking_helpers import DTYPES, assert_same, by_dtype, gradients, mae_random_masking

import sslops
from sslops.ops.key_queue.cases import CASES as QUEUE_CASES
from sslops.ops.masking.cases import CASES, Case

ROOT = Path(__file__).parents[2]
SOURCES = ["masking", "patches", "key_queue"]
by_name = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)

BINDING = """
#include "binding.h"
#include "key_queue.h"
#include "masking.h"
using namespace sslops;
PYBIND11_MODULE(_on_cpu, m) {
"""


def as_cpp(source):
    """CUDA's two pieces of syntax, a launch and dynamic shared memory, as C++."""
    source = re.sub(r"([\w<>():]+)<<<(.*?)>>>\(a\);", r"on_cpu::launch(\1, \2, a);", source)
    shared = r"extern __shared__ (\w+) (\w+)\[\];"
    return re.sub(shared, r"auto* \2 = reinterpret_cast<\1*>(on_cpu::shared_memory);", source)


def compile_all(folder):
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler was found")
    pybind11 = pytest.importorskip("pybind11")
    names = re.findall(r"^void (\w+)\(", (ROOT / "csrc/masking.h").read_text(), re.MULTILINE)
    lines = [f'  def_cuda(m, "{n}", cuda::{n});' for n in (*names, "enqueue")]
    (folder / "binding.cpp").write_text(BINDING + "\n".join(lines) + "\n}\n")
    for name in SOURCES:
        (folder / f"{name}.cpp").write_text(as_cpp((ROOT / f"csrc/{name}.cu").read_text()))
    include = [Path(__file__).parent / "cuda_on_cpu", ROOT / "csrc", pybind11.get_include(),
               sysconfig.get_paths()["include"]]  # fmt: skip
    flags = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-D__CUDACC__", "-w"]
    flags += [f"-I{path}" for path in include]

    def build(name):
        subprocess.run([compiler, *flags, "-c", f"{name}.cpp"], cwd=folder, check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(build, [*SOURCES, "binding"]))
    module = folder / f"_on_cpu{sysconfig.get_config_var('EXT_SUFFIX')}"
    objects = [f"{name}.o" for name in (*SOURCES, "binding")]
    subprocess.run([compiler, "-shared", *objects, "-o", module], cwd=folder, check=True)
    return module


@pytest.fixture(scope="module")
def extension(tmp_path_factory):
    path = compile_all(tmp_path_factory.mktemp("cuda_on_cpu"))
    spec = importlib.util.spec_from_file_location("_on_cpu", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def cuda_kernels(extension, monkeypatch):
    """Launches of the CPU backend run the CUDA kernels."""
    pytest.importorskip("sslops._C")
    from sslops.ops.key_queue import _kernels as queue
    from sslops.ops.masking import _kernels as masking

    def launch(name, device, fields):
        getattr(extension, name)(fields, 0, 0)
        return -1

    for kernels in (masking, queue):
        monkeypatch.setitem(kernels.LAUNCH, "cpu", launch)


def both(function, tensors):
    """Values and gradients by the kernels and by the specification."""
    return (
        gradients(functools.partial(function, backend=backend), tensors)
        for backend in ("cpu", "reference")
    )


@by_name
def test_random_masking(case):
    x, noise = case.tokens()
    options = dict(noise=noise, num_prefix_tokens=case.P)
    ours = sslops.random_masking(x, case.mask_ratio, **options, backend="cpu")
    x_kept, mask, ids_restore = ours
    expected = mae_random_masking(x[:, case.P :], case.mask_ratio, noise)
    assert_same((x_kept[:, case.P :], mask, ids_restore), expected)

    def kept(x, backend):
        return sslops.random_masking(x, case.mask_ratio, **options, backend=backend)[0]

    assert_same(*both(kept, [x]))


@pytest.mark.parametrize("length", [1, 2, 3, 33, 64, 65, 127, 1000, 8192])
def test_special_noise_and_ids(length):
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-45, -1e-45, 1])
    noise = special[torch.randint(0, len(special), (2, length))]
    ours = sslops.sample_mask(2, length, 0.6, noise=noise, backend="cpu")
    assert_same(ours, sslops.sample_mask(2, length, 0.6, noise=noise, backend="reference"))


@pytest.mark.parametrize("length", [1, 3, 30, 257])
@pytest.mark.parametrize("step", [5, torch.tensor(2**32 - 1)], ids=["int", "tensor"])
def test_counter_generator(length, step):
    generator = sslops.CounterGenerator(2**62 + 3, step, 2**32 - 2)
    ours = sslops.sample_mask(3, length, 0.5, generator=generator, backend="cpu")
    plain = sslops.sample_mask(3, length, 0.5, generator=generator, backend="reference")
    assert_same(ours, plain)


@by_dtype
@by_name
def test_gather_tokens(case, dtype):
    x, noise = case.tokens(dtype=dtype)
    ids_keep = sslops.sample_mask(*noise.shape, case.mask_ratio, noise=noise).ids_keep

    def gather(x, backend):
        return sslops.gather_tokens(x, ids_keep, num_prefix_tokens=case.P, backend=backend)

    assert_same(*both(gather, [x]))


@pytest.mark.parametrize("x_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("parameter_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [CASES[6], CASES[7], Case("wide", 9, 20, 520, P=1)])
@pytest.mark.parametrize("positions", ["none", "shared", "per sample"])
def test_restore_tokens(case, x_dtype, parameter_dtype, positions):
    x_kept, ids_restore, token, position = case.decoder()
    tensors = [x_kept.to(x_dtype), token.to(parameter_dtype), position.to(parameter_dtype)]
    if positions == "per sample":
        tensors[2] = tensors[2] + torch.randn(case.B, 1, 1).to(tensors[2])
    if positions == "none":
        tensors = tensors[:2]

    def restore(x, token, *position, backend):
        return sslops.restore_tokens(
            x, ids_restore, token, *position, num_prefix_tokens=case.P, backend=backend
        )

    ours, plain = both(restore, tensors)
    assert_same(ours[:2], plain[:2])
    for a, b in zip(ours[2:], plain[2:], strict=True):
        eps = max(torch.finfo(x.dtype).eps for x in (ours[0], a))
        torch.testing.assert_close(a, b, rtol=4 * eps, atol=8 * eps * b.abs().max().item())


@pytest.mark.parametrize("S", [1, 2, 3, 7])
@by_dtype
def test_sums_over_chunks_of_the_batch(S, dtype):
    from sslops.ops.masking import _kernels

    B, L, P, D, K = 7, 5, 1, 24, 2
    gradient = torch.randn(B, P + L, D).to(dtype)
    ids = torch.rand(B, L).argsort(dim=1)
    token, position = torch.empty(2, S, P + L, D)
    fields = (gradient, _kernels.DTYPES[dtype], ids, token, position, S, B, L, K, P, D)
    _kernels.launch("restore_gradients", gradient, *fields)
    masked = torch.cat([torch.zeros(B, P), (ids >= K).float()], dim=1)[..., None]
    exact = gradient.double()
    torch.testing.assert_close(position.double().sum(0), exact.sum(0), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(token.double().sum(0), (exact * masked).sum(0), rtol=1e-6, atol=1e-5)


@by_dtype
@pytest.mark.parametrize("B, C, H, W, p", [(2, 3, 8, 8, 4), (1, 3, 6, 10, 2), (2, 1, 4, 4, 1),
                                           (1, 4, 28, 14, 14), (2, 3, 32, 32, 16)])  # fmt: skip
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gather_patches(B, C, H, W, p, layout, dtype):
    images = torch.randn(B, C, H, W).to(dtype)
    ids_keep = torch.rand(B, (H // p) * (W // p)).argsort(dim=1)[:, : H // p]

    def gather(images, backend):
        images = images.contiguous(memory_format=layout)
        return sslops.gather_patches(images, ids_keep, p, backend=backend)

    assert_same(*both(gather, [images]))


@pytest.mark.parametrize("offset", [1, 2, 4, 8])
@pytest.mark.parametrize("width", [1, 7, 8, 12, 64])
def test_rows_at_any_address(offset, width):
    memory, noise = torch.randn(offset + 2 * 20 * width).bfloat16(), torch.rand(2, 20)

    def kept(memory, backend):
        x = memory[offset:].view(2, 20, width)
        return sslops.random_masking(x, 0.5, noise=noise, backend=backend)[0]

    assert_same(*both(kept, [memory]))


@pytest.mark.parametrize("bad", [5, -1, -2, 2**40, -(2**63)])
def test_ids_out_of_range_give_nan_rows_and_touch_nothing_else(bad):
    x, ids = torch.randn(2, 5, 24), torch.tensor([[0, 1, 2, 3, 4], [4, 3, bad, 1, 0]])
    kept = sslops.gather_tokens(x, ids, backend="cpu")
    restored = sslops.restore_tokens(x[:, :2], ids, x[0, 0], backend="cpu")
    for rows in (kept, restored):
        assert rows[1, 2].isnan().all() and rows.isnan().sum() == 24
    assert torch.equal(kept[0], x[0]) and torch.equal(kept[1, 4], x[1, 0])
    images = torch.randn(2, 3, 4, 20)
    patches = sslops.gather_patches(images, ids, 4, backend="cpu")
    assert patches[1, 2].isnan().all() and patches.isnan().sum() == 48


def test_the_gradient_of_a_token_named_twice_is_nan():
    x, ids = torch.randn(2, 5, 24, requires_grad=True), torch.tensor([[0, 1], [3, 3]])
    sslops.gather_tokens(x, ids, backend="cpu").sum().backward()
    assert x.grad[1, 3].isnan().all() and x.grad.isnan().sum() == 24
    assert (x.grad[0, :2] == 1).all() and (x.grad[0, 2:] == 0).all()


@pytest.mark.parametrize("stored_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("key_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", QUEUE_CASES, ids=lambda c: c.name)
def test_key_queue(case, key_dtype, stored_dtype):
    ours, plain = (
        sslops.KeyQueue(case.size, case.D, dtype=stored_dtype, backend=backend)
        for backend in ("cpu", "reference")
    )
    ours.load_state_dict(plain.state_dict())
    for keys in case.keys(dtype=key_dtype):
        ours.enqueue_(keys)
        plain.enqueue_(keys)
        assert torch.equal(ours.pointer, plain.pointer)
        assert ours._blocks_done.item() == 0
        eps = torch.finfo(stored_dtype).eps
        torch.testing.assert_close(ours.keys, plain.keys, rtol=eps, atol=1e-6)
