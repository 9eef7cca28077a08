"""color_attention: hand-worked numbers, windows, top-k, edges, on every backend that runs here."""

import pytest
import torch
from backends import is_interpreted
from color_agreement import assert_agrees
from hypothesis import given, settings
from hypothesis import strategies as st

import sslops
from sslops import registry
from sslops.ops.color_attention import cases

BACKENDS = list(registry.OPS["color_attention"].backends)
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def attend(*tensors, backend, **options):
    """color_attention, or a skip where the backend says that it cannot run."""
    try:
        return sslops.color_attention(*tensors, backend=backend, **options)
    except RuntimeError as error:
        if "cannot run here" not in str(error):
            raise
        pytest.skip(str(error))


def identity_cells(count, device, scale=100.0):
    """[1, count, count]: every cell has an embedding of its own; attention to itself is 1."""
    return scale * torch.eye(count, device=device)[None]


def weights(target, reference, **options):
    """The attention weights themselves: what is copied are one-hot positions, 64 at a time."""
    positions = torch.eye(reference.shape[1], device=target.device).expand(len(target), -1, -1)
    parts = [attend(target, reference, part, **options) for part in positions.split(64, dim=-1)]
    return torch.cat(parts, dim=-1)


@each_backend
def test_embeddings_shifted_by_dx_dy_copy_the_shifted_colours_exactly(backend, device):
    H, W, dy, dx = 5, 6, 2, -1
    colors = torch.rand(1, H, W, 3, device=device)
    position = identity_cells(H * W, device).view(H, W, H * W)
    shifted = position.roll((dy, dx), (0, 1)).reshape(1, H * W, H * W)
    out = attend(shifted, position.reshape(1, H * W, H * W), colors.view(1, H * W, 3),
                 backend=backend)  # fmt: skip
    assert torch.equal(out, colors.roll((dy, dx), (1, 2)).view(1, H * W, 3))


@each_backend
def test_two_cells_by_hand(backend, device):
    f = torch.tensor([[[1.0, 2.0]]], device=device)
    g = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], device=device)
    v = torch.tensor([[[10.0], [20.0]]], device=device)
    out = attend(f, g, v, temperature=0.5, backend=backend)  # scores 2 and 4
    torch.testing.assert_close(out.cpu(), torch.tensor([[[10 + 10 / (1 + torch.e**-2)]]]))


@each_backend
@pytest.mark.parametrize("options", [{}, {"radius": 2, "grid": (5, 13)}, {"topk": 4},
                                     {"radius": (None, 1), "grid": (5, 13), "topk": 9}],
                         ids=["all", "window", "top 4", "window and top 9"])  # fmt: skip
def test_weights_of_a_target_cell_sum_to_one(backend, options, device):
    target, reference = torch.randn(2, 65, 16), torch.randn(2, 130, 16)
    total = weights(target.to(device), reference.to(device), backend=backend, **options).sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total))


@each_backend
def test_one_softmax_runs_over_the_cells_of_all_frames(backend, device):
    target, reference = torch.randn(1, 6, 8, device=device), torch.randn(1, 18, 8, device=device)
    out = weights(target, reference, backend=backend, grid=(2, 3))
    torch.testing.assert_close(out, (target @ reference.mT).softmax(-1))


@each_backend
def test_window_is_a_square_around_the_own_position(backend, device):
    H, W, radius = 4, 7, 2
    zeros = torch.zeros(1, H * W, 8, device=device)
    out = weights(zeros, zeros, backend=backend, grid=(H, W), radius=radius)[0].cpu()
    for cell in range(H * W):
        y, x = divmod(cell, W)
        inside = torch.zeros(H, W)
        inside[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1] = 1
        torch.testing.assert_close(out[cell].view(H, W), inside / inside.sum())


@each_backend
def test_window_can_spare_the_first_frame(backend, device):
    H, W = 3, 4
    zeros = torch.zeros(1, H * W, 8, device=device)
    out = weights(zeros, zeros.repeat(1, 3, 1), backend=backend, grid=(H, W), radius=(None, 0, 1))
    seen = (out[0].cpu() > 0).view(H, W, 3, H * W).sum(-1)
    assert (seen[..., 0] == H * W).all()
    assert (seen[..., 1] == 1).all()
    assert seen[..., 2].tolist() == [[4, 6, 6, 4], [6, 9, 9, 6], [4, 6, 6, 4]]


@each_backend
@pytest.mark.parametrize("topk", [None, 3])
def test_a_window_without_any_key_gives_zeros_and_zero_gradients(backend, topk, device):
    tensors = [torch.randn(2, 12, w, device=device, requires_grad=True) for w in (8, 8, 3)]
    out = attend(*tensors, grid=(3, 4), radius=-1, topk=topk, backend=backend)
    assert torch.equal(out, torch.zeros_like(out))
    for gradient in torch.autograd.grad(out.sum(), tensors):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@each_backend
def test_ties_in_top_k_go_to_the_lower_index(backend, device):
    target = torch.tensor([[[1.0], [-1.0], [0.0]]], device=device)
    scores = [0.0, 2.0, 1.0, 2.0, -1.0, 1.0, 1.0, 2.0, -1.0, -0.0] + 60 * [0.0] + [2.0, -1.0]
    reference = torch.tensor(scores, device=device).view(1, -1, 1)
    kept = weights(target, reference, topk=5, backend=backend)[0] > 0
    assert [row.nonzero().flatten().tolist() for row in kept] == [
        [1, 2, 3, 7, 70],  # four of 2, then the first of 1
        [0, 4, 8, 9, 71],  # three of -1, then the first two of 0 (0 and -0 are equal)
        [0, 1, 2, 3, 4],
    ]


@each_backend
def test_ties_across_a_whole_row_keep_the_first_cells(backend, device):
    zeros = torch.zeros(1, 300, 4, device=device)
    out = weights(zeros[:, :3], zeros, topk=10, backend=backend)
    expected = torch.zeros(1, 3, 300, device=device)
    expected[..., :10] = 0.1
    torch.testing.assert_close(out, expected)


@each_backend
def test_top_k_is_the_softmax_over_the_k_largest(backend, device):
    target, reference = torch.randn(2, 9, 8, device=device), torch.randn(2, 80, 8, device=device)
    values = torch.randn(2, 80, 4, device=device)
    out = attend(target, reference, values, topk=6, temperature=0.3, backend=backend)
    best, index = (target @ reference.mT / 0.3).topk(6)
    picked = torch.stack([values[b][index[b]] for b in range(2)])  # [B, Nt, 6, C]
    torch.testing.assert_close(out, (best.softmax(-1)[..., None] * picked).sum(2))


@each_backend
def test_top_k_of_all_keys_is_full_attention(backend, device):
    tensors = [torch.randn(1, n, w, device=device) for n, w in ((5, 8), (20, 8), (20, 3))]
    full = attend(*tensors, backend=backend)
    torch.testing.assert_close(attend(*tensors, topk=20, backend=backend), full)


@each_backend
def test_gradients_of_top_k_reach_only_the_selected_cells(backend, device):
    target, reference = torch.randn(1, 1, 8, device=device), torch.randn(1, 50, 8, device=device)
    values = torch.randn(1, 50, 3, device=device)
    reference, values = reference.requires_grad_(), values.requires_grad_()
    out = attend(target, reference, values, topk=4, backend=backend)
    chosen = (target @ reference.mT).topk(4).indices.flatten().sort().values
    for gradient in torch.autograd.grad(out.square().sum(), (reference, values)):
        assert gradient[0].abs().sum(-1).nonzero().flatten().tolist() == chosen.tolist()


@each_backend
@pytest.mark.parametrize("topk", [None, 2])
def test_scores_of_ten_thousand_neither_overflow_nor_give_nan(backend, topk, device):
    target = torch.tensor([[[100.0], [-100.0]]], device=device, requires_grad=True)
    reference = torch.tensor([[[100.0], [-100.0], [0.0]]], device=device, requires_grad=True)
    values = torch.tensor([[[1.0], [2.0], [3.0]]], device=device, requires_grad=True)
    out = attend(target, reference, values, topk=topk, backend=backend)
    assert out.flatten().tolist() == [1.0, 2.0]
    gradients = torch.autograd.grad(out.sum(), (target, reference, values))
    assert all(g.isfinite().all() for g in gradients)
    assert gradients[2].flatten().tolist() == [1.0, 1.0, 0.0]


@each_backend
@pytest.mark.parametrize("topk", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_temperature_as_a_tensor_gets_its_gradient(backend, topk, dtype, device):
    target, reference, values = (torch.randn(2, 20, w, device=device) for w in (8, 8, 3))

    def function(temperature, **options):
        out = attend(target, reference, values, temperature=temperature, topk=topk, **options)
        return out.square().sum()

    temperature = torch.tensor(0.7, dtype=dtype, device=device, requires_grad=True)
    (gradient,) = torch.autograd.grad(function(temperature, backend=backend), temperature)
    assert gradient.dtype == dtype and gradient.shape == ()
    step = 1e-2  # central difference of the specification in float64
    target, reference, values = (t.double() for t in (target, reference, values))
    at = temperature.double().item()
    up, down = (function(at + s, backend="reference") for s in (step, -step))
    slope = ((up - down) / (2 * step)).item()
    assert abs(gradient.item() - slope) < 5e-3 * max(1, abs(slope))


@each_backend
@pytest.mark.parametrize("wanted", ["target", "reference", "values", "temperature"])
@pytest.mark.parametrize("topk", [None, 4])
def test_gradient_wanted_for_only_one_argument(backend, wanted, topk, device):
    arguments = {"target": torch.randn(1, 9, 8), "reference": torch.randn(1, 21, 8),
                 "values": torch.randn(1, 21, 3), "temperature": torch.tensor(0.5)}  # fmt: skip
    arguments = {name: value.to(device) for name, value in arguments.items()}
    gradients = []
    for names in (list(arguments), [wanted]):
        inputs = {n: v.clone().requires_grad_(n in names) for n, v in arguments.items()}
        order = [inputs[n] for n in ("target", "reference", "values")]
        out = attend(*order, temperature=inputs["temperature"], topk=topk, backend=backend)
        gradients.append(torch.autograd.grad(out.square().sum(), inputs[wanted])[0])
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)


@each_backend
def test_values_in_float32_keep_their_digits_beside_half_embeddings(backend, device):
    cells = identity_cells(20, device).half()
    values = torch.rand(1, 20, 5, device=device)
    assert torch.equal(attend(cells, cells, values, backend=backend), values)


@each_backend
@pytest.mark.parametrize("topk", [None, 3])
def test_scores_beyond_float16_do_not_overflow(backend, topk, device):
    cells = identity_cells(20, device, scale=300.0).half()  # 300 * 300 > 65504
    values = torch.rand(1, 20, 5, device=device)
    assert torch.equal(attend(cells, cells, values, topk=topk, backend=backend), values)


@each_backend
@pytest.mark.parametrize("topk", [None, 3])
def test_inputs_in_any_memory_layout(backend, topk, device):
    target = torch.randn(8, 20, 2, device=device).permute(2, 1, 0)
    reference = torch.randn(1, 33, 17, device=device)[..., 1::2].expand(2, -1, -1)
    values = torch.randn(2, 70, 3, device=device)[:, 2:68:2]
    plain = [t.contiguous() for t in (target, reference, values)]
    strided = [t.detach().requires_grad_() for t in (target, reference, values)]
    dense = [t.detach().requires_grad_() for t in plain]
    a, b = (attend(*t, topk=topk, backend=backend) for t in (strided, dense))
    assert torch.equal(a, b)
    upstream = torch.randn(20, 2, 3, device=device).transpose(0, 1)
    for x, y in zip(torch.autograd.grad(a, strided, upstream),
                    torch.autograd.grad(b, dense, upstream), strict=True):  # fmt: skip
        assert torch.equal(x, y)


@each_backend
@pytest.mark.parametrize("Nt, Nr, B", [(0, 5, 1), (5, 0, 2), (4, 4, 0)])
def test_empty_inputs(backend, Nt, Nr, B, device):
    tensors = [torch.randn(B, n, w, device=device, requires_grad=True)
               for n, w in ((Nt, 8), (Nr, 8), (Nr, 3))]  # fmt: skip
    out = attend(*tensors, backend=backend)
    assert torch.equal(out, torch.zeros(B, Nt, 3, device=device))  # no key: zeros
    gradients = torch.autograd.grad(out.sum(), tensors, allow_unused=True)
    assert all(g is None or not g.any() for g in gradients)


@each_backend
@pytest.mark.parametrize("name", [
    "odd widths", "top 5", pytest.param("window", marks=pytest.mark.slow)
])  # fmt: skip
def test_same_bits_every_time_and_with_retain_graph(backend, name, device):
    case = next(case for case in cases.CASES if case.name == name)
    tensors, options = case.inputs(device)
    out = attend(*tensors, backend=backend, **options)
    upstream = torch.randn_like(out)
    first = torch.autograd.grad(out, tensors, upstream, retain_graph=True)
    for _ in range(1 if is_interpreted(backend) else 3):
        again = torch.autograd.grad(out, tensors, upstream, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert torch.equal(out, attend(*tensors, backend=backend, **options))


@each_backend
def test_permuting_the_batch_permutes_the_result(backend, device):
    tensors = [torch.randn(4, 20, w, device=device) for w in (16, 16, 3)]
    order = torch.tensor([2, 0, 3, 1], device=device)
    out = attend(*tensors, backend=backend)
    assert torch.equal(attend(*(t[order] for t in tensors), backend=backend), out[order])


@each_backend
def test_one_row_of_nan_does_not_poison_the_others(backend, device):
    tensors = [torch.randn(1, 20, w, device=device) for w in (16, 16, 3)]
    clean = attend(*tensors, backend=backend)
    tensors[0][0, 7] = torch.nan
    out = attend(*tensors, backend=backend)
    assert out[0, 7].isnan().all()
    others = torch.arange(20, device=device) != 7
    assert torch.equal(out[:, others], clean[:, others])


@each_backend
def test_autocast_does_not_lower_the_precision(backend, device):
    tensors = [torch.randn(1, 20, w, device=device) for w in (16, 16, 3)]
    plain = attend(*tensors, backend=backend)
    with torch.autocast(device, torch.bfloat16):
        assert torch.equal(attend(*tensors, backend=backend), plain)


@st.composite
def calls(draw):
    """A case of any shape, window, top-k, temperature and dtype, and a seed."""
    grid = draw(st.none() | st.tuples(st.integers(1, 7), st.integers(1, 7)))
    frames = draw(st.integers(1, 3))
    options = {"temperature": draw(st.sampled_from([0.1, 1.0, 7.0]))}
    if grid is not None:
        radii = st.none() | st.integers(-1, 7)
        options["radius"] = draw(
            radii | st.lists(radii, min_size=frames, max_size=frames).map(tuple)
        )
    case = cases.Case("any", draw(st.integers(1, 70)), draw(st.integers(1, 150)),
                      D=draw(st.sampled_from([1, 3, 8, 64, 65, 96, 130])),
                      C=draw(st.sampled_from([1, 3, 8, 17, 64])), B=draw(st.integers(1, 3)),
                      grid=grid, frames=frames, options=options)  # fmt: skip
    Nr = case.cells[1]
    options["topk"] = draw(st.none() | st.integers(1, min(Nr, 32)))
    return case, draw(st.sampled_from(DTYPES)), draw(st.integers(0, 999))


DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
def test_any_call_agrees_with_the_specification_in_float64(backend, device):
    attend(*(torch.ones(1, 4, 4, device=device),) * 3, backend=backend)  # or skip

    @settings(max_examples=5 if backend == "triton" and device == "cpu" else 60)
    @given(call=calls())
    def check(call):
        case, dtype, seed = call
        tensors, options = case.inputs(device, dtype, seed)
        assert_agrees(sslops.color_attention, tensors, options, backend)

    check()
