"""Random views: every backend against the specification, and that against torchvision."""

import importlib

import pytest
import torch
from backends import is_interpreted, slow_if, slow_interpreted

import sslops
from sslops import registry
from sslops.ops.augment.cases import CASES, EVERYTHING, Case

tv = pytest.importorskip("torchvision.transforms.v2.functional")
OP = registry.OPS["augment"]
LEVEL = 1 / 255
AS_BYTES = dict(mean=(0.0,) * 3, std=(1.0,) * 3)


def backends():
    return [b for b in OP.order if b in OP.backends]


# Under the interpreter agreement with the specification is enough but for `make test-all`.
each_backend = pytest.mark.parametrize("backend", slow_interpreted(backends()))


def shortened(args, backend):
    """The first samples where kernels are interpreted, which takes seconds a large view."""
    if not is_interpreted(backend):
        return args
    images, drawn, size = args
    count = 3 if size <= 32 and images[:1].numel() < 20000 else 2
    return images[:count], {name: value[:count] for name, value in drawn.items()}, size


def views(images, backend="reference", size=24, **parameters):
    """Views in units of 0 to 1, with these parameters and no others."""
    options = {name: parameters.pop(name) for name in ("interpolation", "blur_kernel", "dtype")
               if name in parameters}  # fmt: skip
    return sslops.augment(images, parameters, size, **AS_BYTES, **options, backend=backend)


def pictures(count=8, height=24, width=24, channels=3, seed=0):
    return Case("", count, height, width, 24, channels).images(seed=seed)


def images_and_floats(count=8):
    x = pictures(count)
    return x, x.double() / 255


LONG = ("simclr, shrunk", "bicubic, shrunk", "padded and shrunk", "wide blur")
AGREEMENT = [pytest.param(b, case, id=f"{b}-{case.name}",
                          marks=slow_if(is_interpreted(b) and case.name in LONG))
             for b in backends() if b != "reference" for case in CASES]  # fmt: skip


@pytest.mark.parametrize("backend, case", AGREEMENT)
def test_backends_agree_with_the_specification(backend, case, device):
    args, options = case.inputs(device)
    args = shortened(args, backend)
    views = sslops.augment(*args, **options, backend=backend)
    expected = sslops.augment(*args, **{**options, "dtype": torch.float64}, backend="reference")
    assert views.dtype == torch.float32 and views.shape == expected.shape
    # A hundredth of a grey level, where std is 1/4: hue divides by small differences.
    torch.testing.assert_close(views.double(), expected, atol=0.01 * LEVEL / 0.25, rtol=0)


@pytest.mark.parametrize("backend", [b for b in backends() if b != "reference"])
def test_rounding_steps_agree_but_for_values_at_a_threshold(backend):
    case = Case("", 40, 30, 34, 28, options=EVERYTHING)
    args, options = case.inputs()
    args = shortened(args, backend)
    views = sslops.augment(*args, **options, backend=backend)
    expected = sslops.augment(*args, **{**options, "dtype": torch.float64}, backend="reference")
    wrong = (views - expected).abs() > 0.01 * LEVEL / 0.25
    changed = (args[1]["posterize"] < 8) | args[1]["solarize"]
    assert not wrong[~changed].any() and wrong.double().mean() < 1e-4


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("height, width, size", [(24, 24, 24), (70, 51, 24), (13, 40, 29)])
@each_backend
def test_crops_are_within_a_grey_level_of_torchvisions(backend, height, width, size, interpolation):
    images = pictures(12, height, width)
    spec, index = sslops.ViewSpec(size), torch.arange(12)
    drawn = sslops.sample_parameters(spec, 3, 0, index, height=height, width=width)
    images, drawn, _ = shortened((images, drawn, size), backend)
    crop, flip = drawn["crop"], drawn["flip"]
    ours = views(images, backend, size, crop=crop, flip=flip, interpolation=interpolation)
    for view, image, box, is_flipped in zip(ours, images, crop, flip, strict=True):
        box, mode = box.int().tolist(), tv.InterpolationMode(interpolation)
        floats = tv.resized_crop(image / 255, *box, [size, size], mode, antialias=True).clamp(0, 1)
        as_bytes = tv.resized_crop(image, *box, [size, size], mode, antialias=True)
        if is_flipped:
            floats, as_bytes = floats.flip(-1), as_bytes.flip(-1)
        assert (view - floats).abs().max() < 0.01 * LEVEL
        # Bicubic bytes are rounded and cut off between the two directions, up to 2 levels away.
        if interpolation == "bilinear":
            assert ((view * 255).round() - as_bytes).abs().max() <= 1


@pytest.mark.parametrize("backend", backends())
def test_a_crop_beyond_the_border_is_black_there(backend):
    images = pictures(4, 20, 20)
    boxes = torch.tensor([[-4, -3, 30, 31], [2, 5, 20, 20], [-9, 11, 12, 12], [-2, -2, 20, 20]])
    ours = views(images, backend, 20, crop=boxes)
    for view, image, box in zip(ours, images, boxes.tolist(), strict=True):
        theirs = tv.resized_crop(image / 255, *box, [20, 20], antialias=True)
        assert (view - theirs).abs().max() < 0.01 * LEVEL


@pytest.mark.parametrize("seed", range(3))
@each_backend
def test_jitter_equals_torchvisions_in_any_order(backend, seed):
    images, x = images_and_floats(24)
    spec = sslops.ViewSpec(24, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.5, jitter=1)
    drawn = sslops.sample_parameters(spec, seed, 0, torch.arange(24), height=24, width=24)
    images, drawn, _ = shortened((images, drawn, 24), backend)
    x = x[: len(images)]
    factors, order = drawn["factors"], drawn["order"]
    ours = views(images, backend, factors=factors, order=order)
    functions = tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue
    for view, theirs, f, turns in zip(ours, x, factors.tolist(), order.tolist(), strict=True):
        for turn in turns:
            theirs = functions[turn](theirs, f[turn])
        assert (view - theirs).abs().max() < 0.01 * LEVEL


@pytest.mark.parametrize("operation", range(4))
def test_each_colour_operation_is_within_a_grey_level_of_torchvisions_on_bytes(operation):
    images = pictures(24)
    factors = torch.tensor([1.0, 1, 1, 0]).repeat(24, 1)
    factors[:, operation] = torch.linspace(-0.5, 0.5, 24) + (operation != 3)
    ours = views(images, backends()[0], factors=factors)
    functions = tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue
    for view, image, f in zip(ours, images, factors[:, operation].tolist(), strict=True):
        # torchvision cuts off the fractions of greys and of results.
        assert ((view * 255 + 1e-3).int() - functions[operation](image, f)).abs().max() <= 1


@each_backend
def test_grey_equals_torchvisions(backend):
    images, x = images_and_floats()
    chosen = torch.arange(8) % 2 == 0
    ours = views(images, backend, grayscale=chosen)
    theirs = torch.where(chosen[:, None, None, None], tv.rgb_to_grayscale(x, 3), x)
    torch.testing.assert_close(ours.double(), theirs, atol=0.01 * LEVEL, rtol=0)


@pytest.mark.parametrize("kernel", [3, 7, 23])
@each_backend
def test_blur_equals_torchvisions(backend, kernel):
    images, x = images_and_floats()
    sigma = torch.linspace(0, 2.5, 8)
    ours = views(images, backend, blur_sigma=sigma, blur_kernel=kernel)
    torch.testing.assert_close(ours[0].double(), x[0], atol=1e-6, rtol=0)
    for view, picture, s in zip(ours[1:], x[1:], sigma[1:].tolist(), strict=True):
        theirs = tv.gaussian_blur(picture, [kernel, kernel], [s, s])
        assert (view - theirs).abs().max() < 0.01 * LEVEL


@each_backend
def test_solarise_and_posterise_equal_torchvisions_on_bytes(backend):
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(9, 3, 16, 16)
    bits = torch.arange(9).clamp(min=1)
    ours = views(images, backend, 16, posterize=bits)
    for view, image, b in zip(ours, images, bits.tolist(), strict=True):
        assert torch.equal((view * 255).round(), tv.posterize(image, b).to(view.dtype))
    chosen = torch.arange(9) > 4
    ours = (views(images, backend, 16, solarize=chosen) * 255).round()
    assert torch.equal(ours[0].int(), images[0].int())
    assert torch.equal(ours[8], tv.solarize(images[8], 128).to(ours.dtype))


@each_backend
def test_affine_equals_torchvisions(backend):
    images, x = images_and_floats(10)
    draws = torch.rand(10, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    angle, shear, shift = 40 * draws[:, 0], 20 * draws[:, 1], (5 * draws[:, 2:]).round()
    theta = sslops.ops.augment.parameters.affine_matrix(
        angle.deg2rad(), shear.deg2rad(), shift / 12
    )
    ours = views(images, backend, affine=theta)
    for i, (view, picture) in enumerate(zip(ours, x, strict=True)):
        theirs = tv.affine(picture, angle[i].item(), shift[i].tolist(), 1.0, [shear[i].item(), 0.0],
                           interpolation=tv.InterpolationMode.BILINEAR)  # fmt: skip
        assert (view - theirs).abs().max() < 0.01 * LEVEL


@pytest.mark.parametrize("backend", backends())
def test_erasing_blanks_the_normalised_view(backend):
    images = pictures(3)
    boxes = torch.tensor([[0, 0, 0, 0], [3, 5, 7, 11], [-2, 20, 9, 90]])
    ours = sslops.augment(images, {"erase": boxes}, 24, backend=backend)
    whole = sslops.augment(images, {}, 24, backend=backend)
    assert torch.equal(ours[0], whole[0])
    assert torch.equal(ours[1], tv.erase(whole[1], 3, 5, 7, 11, torch.zeros(3, 1, 1)))
    assert torch.equal(ours[2], tv.erase(whole[2], 0, 20, 7, 4, torch.zeros(3, 1, 1)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", backends())
def test_half_precision_views_are_rounded_float32_ones(backend, dtype):
    images = pictures(5, 30, 40)
    whole = views(images, backend, 21)
    short = views(images, backend, 21, dtype=dtype)
    assert short.dtype == dtype
    torch.testing.assert_close(short, whole.to(dtype), atol=0, rtol=torch.finfo(dtype).eps)


@each_backend
def test_strides_of_images_do_not_matter(backend):
    images = pictures(2 if is_interpreted(backend) else 4, 20, 28)
    expected = views(images, backend, 16)
    channels_last = images.to(memory_format=torch.channels_last)
    wider = torch.cat([images, images], 3)[..., 28:]
    for other in (channels_last, wider, images.flip(0).flip(0), images.mT.contiguous().mT):
        assert torch.equal(views(other, backend, 16), expected)


@each_backend
def test_a_view_does_not_depend_on_its_batch(backend):
    args, options = Case("", 5, 30, 34, 28, options=EVERYTHING).inputs()
    whole = sslops.augment(*args, **options, backend=backend)
    some = {name: value[3:5] for name, value in args[1].items()}
    part = sslops.augment(args[0][3:5], some, 28, **options, backend=backend)
    # Matrix products may round differently for another batch.
    changed = (args[1]["posterize"] < 8)[3:5, None, None, None]
    error = (part - whole[3:5]).abs()
    assert torch.where(changed, 0, error).max() < 1e-4 or backend != "chunked"
    assert backend == "chunked" or error.max() == 0


@each_backend
def test_compiles_without_a_graph_break(backend):
    case = Case("", 3, 12, 14, 8, options=EVERYTHING)
    if backend == "reference":
        pytest.skip("the specification reads its parameters one by one")

    def make(images, index):
        drawn = sslops.sample_parameters(case.spec, 5, 2, index, height=12, width=14)
        return sslops.augment(images, drawn, 8, backend=backend)

    images, index = case.images(), torch.tensor([4, 0, 9])
    compiled = torch.compile(make, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images, index), make(images, index), atol=1e-5, rtol=0)


IMAGES = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
CROP = torch.tensor([[0, 0, 8, 8]] * 2)
# fmt: off
BAD = {
    "floats": (TypeError, "images|uint8|float32", (IMAGES.float(), {}, 8), {}),
    "two channels": (ValueError, "images|C = 1 or 3|(2, 2, 8, 8)", (IMAGES[:, :2], {}, 8), {}),
    "no batch": (ValueError, "images|[B, C, H, W]|(3, 8, 8)", (IMAGES[0], {}, 8), {}),
    "unknown step": (ValueError, "parameters|crop|rotate", (IMAGES, {"rotate": CROP}, 8), {}),
    "a list": (TypeError, "parameters['crop']|tensor|list", (IMAGES, {"crop": [1]}, 8), {}),
    "too few crops":
        (ValueError, "parameters['crop']|(2, 4)|(1, 4)", (IMAGES, {"crop": CROP[:1]}, 8), {}),
    "no size": (ValueError, "size|0", (IMAGES, {}, 0), {}),
    "half a size": (TypeError, "size|int|0.5", (IMAGES, {}, 0.5), {}),
    "one mean": (ValueError, "mean|3 values|[0.5]", (IMAGES, {}, 8), {"mean": [0.5]}),
    "std is 0": (ValueError, "std|above 0", (IMAGES, {}, 8), {"std": [0.5, 0, 1]}),
    "nearest": (ValueError, "interpolation|'bilinear'|'nearest'", (IMAGES, {}, 8),
                {"interpolation": "nearest"}),
    "integers": (ValueError, "dtype|torch.int64", (IMAGES, {}, 8), {"dtype": torch.int64}),
    "even kernel": (ValueError, "blur_kernel|odd|4", (IMAGES, {}, 8), {"blur_kernel": 4}),
    "wide kernel": (ValueError, "blur_kernel|2 size|17", (IMAGES, {}, 8), {"blur_kernel": 17}),
}
# fmt: on


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    error, words, args, options = BAD[name]
    with pytest.raises(error) as caught:
        sslops.augment(*args, **options)
    for word in words.split("|"):
        assert word in str(caught.value)


def test_the_cpu_refuses_impossible_crops():
    if "cpu" not in OP.backends:
        pytest.skip("the extension is not built")
    for box in ([0, 0, 0, 8], [0, 0, 8, float("nan")], [0, 0, 8, 1e9], [1e9, 0, 8, 8]):
        with pytest.raises(ValueError, match="crop"):
            sslops.augment(IMAGES, {"crop": torch.tensor([box] * 2)}, 8, backend="cpu")


def test_its_cost_counts_every_byte_once():
    cases = importlib.import_module("sslops.ops.augment.cases")
    assert cases.case_of("2x10x20-4").bytes_moved() == 2 * 3 * (200 + 16 * 4)


@pytest.mark.parametrize(
    "backend", slow_interpreted(b for b in ("cpu", "triton") if b in OP.backends)
)
def test_operators_pass_opcheck(backend):
    args, options = Case("", 2, 9, 11, 7, options=EVERYTHING).inputs()
    table = sslops.ops.augment.parameters.table_of(args[1], args[0])
    steps = [" ".join(args[1])] if backend == "triton" else []
    operator = getattr(torch.ops.sslops, f"augment_{backend}").default
    statistics = list(options["mean"]), list(options["std"])
    torch.library.opcheck(
        operator, (args[0], table, *steps, 7, *statistics, torch.float32, False, False, 3)
    )
