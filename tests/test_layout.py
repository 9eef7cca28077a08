"""Holds the house's rules: who may import whom, which files mirror which, names, sizes, words."""

import ast
import functools
import importlib
import inspect
from pathlib import Path

import pytest

import sslops
from sslops import compat, registry

ROOT = Path(__file__).parent.parent
PACKAGES = ["sslops", "sslzoo"]
CODE = [*PACKAGES, "tests", "benchmarks"]
OPS = sorted(p.name for p in (ROOT / "sslops/ops").iterdir() if (p / "__init__.py").exists())
BACKEND_FILES = {"_cpu.py", "_cuda.py", "_triton.py", "_chunked.py"}
ZOO_LIBRARIES = {"torchvision", "timm", "accelerate", "sslzoo"}


def files(*folders, suffixes=(".py",)):
    """All files under these folders, as paths relative to the root."""
    found = (p for folder in folders for p in (ROOT / folder).rglob("*") if p.suffix in suffixes)
    return sorted(p.relative_to(ROOT) for p in found)


@functools.cache
def tree(path):
    return ast.parse((ROOT / path).read_text())


def imports(path):
    """Full dotted names that a file imports, in whatever form: a.b for `from a import b` too."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = node.module or ""
            if node.level:
                base = path.parts[: len(path.parts) - node.level]
                package = ".".join([*base, *([package] if package else [])])
            found |= {package, *(f"{package}.{alias.name}" for alias in node.names)}
    return found


def importers_of(name, *folders):
    """Files that import a module or anything inside it."""
    return {
        str(path)
        for path in files(*folders)
        if any(n == name or n.startswith(name + ".") for n in imports(path))
    }


# Arrows: csrc <- sslops <- sslzoo <- {tests, benchmarks}


@pytest.mark.parametrize("library", sorted(ZOO_LIBRARIES))
def test_the_ops_do_not_import_what_the_zoo_needs(library):
    assert importers_of(library, "sslops") == set()


@pytest.mark.parametrize("package", ["tests", "benchmarks"])
def test_packages_import_neither_tests_nor_benchmarks(package):
    assert importers_of(package, *PACKAGES) == set()


def test_only_triton_files_import_triton():
    for path in importers_of("triton", *PACKAGES):
        assert Path(path).name.startswith(("_triton", "triton_")), path


def test_only_compiled_backends_import_the_extension():
    for path in importers_of("sslops._C", *PACKAGES):
        assert Path(path).name in ("_cpu.py", "_cuda.py", "cpu_helpers.py"), path


def test_one_file_of_the_ops_knows_torch_distributed():
    known = {"sslops/distributed.py", "sslops/verify.py"}  # the latter starts the processes
    assert importers_of("torch.distributed", "sslops") <= known


def test_backends_do_not_import_the_other_backends_of_other_kinds():
    """A backend is added or deleted as one file."""
    for op in OPS:
        for path in (ROOT / "sslops/ops" / op).glob("_*.py"):
            path = path.relative_to(ROOT)
            kind = path.stem.split("_")[1]
            for name in imports(path):
                parts = name.split(".")
                others = [p for p in parts if f"{p}.py" in BACKEND_FILES]
                assert all(p == f"_{kind}" for p in others), f"{path} imports {name}"


def method_files():
    return [p for p in files("sslzoo/methods") if p.name != "__init__.py"]


@pytest.mark.parametrize("path", method_files(), ids=str)
def test_methods_stand_alone(path):
    """They import no other method, not the loop that trains them, and never a backend."""
    others = {f"sslzoo.methods.{p.stem}" for p in method_files() if p != path}
    for name in imports(path):
        assert name not in others and not name.startswith("sslzoo.training"), name
        assert not name.startswith(("sslops.ops", "sslops.registry", "sslops._C")), name


# Mirrors: the same word in every room


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_its_files_and_its_tests(op):
    folder = ROOT / "sslops/ops" / op
    present = {p.name for p in folder.iterdir() if p.is_file()}
    for name in ("__init__.py", "reference.py", "cases.py", "README.md"):
        assert name in present, f"{op} lacks {name}"
    assert [*(ROOT / "tests/ops").glob(f"test_{op}*.py")], f"{op} has no test file of its name"
    assert importlib.import_module(f"sslops.ops.{op}.cases").CASES


def folder_of(function):
    """The folder of the op whose backend a function is."""
    return function.__module__.split(".")[2]


@pytest.mark.parametrize("op", OPS)
def test_every_backend_file_is_loaded(op):
    present = {p.name for p in (ROOT / "sslops/ops" / op).iterdir()} & BACKEND_FILES
    names = {name.removeprefix("_").removesuffix(".py") for name in present} | {"reference"}
    of_folder = [o for o in registry.OPS.values() if folder_of(o.backends["reference"][0]) == op]
    assert of_folder, f"{op} is not in the registry"
    assert names == {name for o in of_folder for name in o.order}


@pytest.mark.parametrize("op", OPS)
def test_compiled_sources_are_named_like_their_ops(op):
    for backend, source in (("_cuda.py", f"csrc/{op}.cu"), ("_cpu.py", f"csrc/cpu/{op}.cpp")):
        if (ROOT / "sslops/ops" / op / backend).exists():
            assert (ROOT / source).exists(), f"{op}/{backend} has no {source}"


def test_compiled_sources_know_no_torch():
    for path in files("csrc", suffixes=(".cpp", ".cu", ".h", ".cuh")):
        assert "#include <torch" not in (ROOT / path).read_text(), path


def test_test_folders_are_no_packages():
    """An __init__.py there would shadow the packages under test."""
    assert not [p for p in files("tests") if p.name == "__init__.py"]


@pytest.mark.parametrize("op", registry.OPS)
def test_backends_share_one_signature(op):
    """Names, order, kinds and defaults of the specification's."""
    expected = inspect.signature(registry.OPS[op].backends["reference"][0])
    for backend, (function, _) in registry.OPS[op].backends.items():
        assert inspect.signature(function) == expected, backend


# Public signatures, exactly

SIGNATURES = {
    "info_nce": "(query, positive_key, negative_keys=None, temperature=0.1, reduction='mean', "
    "negative_mode='unpaired', *, symmetric=False, normalize=True, group=None, "
    "exchange='auto', return_stats=False, backend=None)",
    "nt_xent": "(z0, z1, temperature=0.5, *, reduction='mean', normalize=True, group=None, "
    "exchange='auto', return_stats=False, backend=None)",
    "random_masking": "(x, mask_ratio, *, noise=None, generator=None, num_prefix_tokens=0, "
    "backend=None)",
    "sample_mask": "(batch, length, mask_ratio, *, noise=None, generator=None, device=None, "
    "strategy='random', backend=None)",
    "gather_tokens": "(x, ids_keep, *, num_prefix_tokens=0, backend=None)",
    "gather_patches": "(images, ids_keep, patch_size, *, backend=None)",
    "restore_tokens": "(x_kept, ids_restore, mask_token, pos_embed=None, *, num_prefix_tokens=0, "
    "backend=None)",
    "KeyQueue": "(size, dim, *, dtype=torch.float32, normalize=True, group=None, sharded=False, "
    "backend=None)",
    "color_attention": "(target, reference, values, *, temperature=1.0, grid=None, radius=None, "
    "topk=None, backend=None)",
    "color_attention_loss": "(target, reference, target_labels, reference_labels, *, "
    "temperature=1.0, reduction='mean', backend=None)",
    "dino_loss": "(student, teacher, *, student_temperature=0.1, teacher_temperature=None, "
    "center=None, weights=None, skip_same_view=True, reduction='mean', group=None, backend=None)",
    "updated_center": "(center, teacher_logits, momentum=0.9, *, group=None)",
    "sinkhorn_knopp": "(logits, temperature, iterations=3, *, group=None, backend=None)",
    "koleo": "(features, *, reduction='mean', group=None, backend=None)",
    "augment": "(images, parameters, size, *, mean=(0.485, 0.456, 0.406), "
    "std=(0.229, 0.224, 0.225), dtype=torch.float32, interpolation='bilinear', "
    "grayscale_first=False, blur_kernel=0, backend=None)",
    "sample_parameters": "(spec, seed, epoch, index, view=0, *, height, width)",
    "compat.NTXentLoss": "(temperature=0.5, memory_bank_size=0, gather_distributed=False)",
    "compat.ClipLoss": "(local_loss=False, gather_with_grad=False, cache_labels=False, rank=0, "
    "world_size=1)",
    "compat.InfoNCE": "(temperature=0.1, reduction='mean', negative_mode='unpaired')",
    "backends": "(device=None)",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_public_signature(name):
    module = compat if name.startswith("compat.") else sslops
    assert str(inspect.signature(getattr(module, name.split(".")[-1]))) == SIGNATURES[name]


def test_public_names_exist():
    assert sslops.InfoNCEStats._fields == ("lse", "positive_logit", "positive_rank")
    assert sslops.MaskIds._fields == ("ids_keep", "ids_restore", "mask")
    for name in sslops.__all__:
        assert hasattr(sslops, name)
    functions = {n for n in sslops.__all__ if inspect.isfunction(getattr(sslops, n))}
    assert functions <= set(SIGNATURES)


# Rules of the page


@pytest.mark.parametrize("suffix", [".py", ".cpp", ".cu", ".h", ".cuh"])
def test_files_have_at_most_400_lines(suffix):
    for path in files(*CODE, "csrc", suffixes=(suffix,)):
        lines = (ROOT / path).read_text().splitlines()
        assert len(lines) <= 400, f"{path}: {len(lines)} lines"


def is_kernel(function):
    return any("jit" in ast.unparse(d) for d in function.decorator_list)


def code_lines(function):
    """Lines from the first statement after the docstring to the end."""
    body = function.body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_functions_are_short():
    """About 15 lines is the aim; 40, and 80 for a kernel, is too long to read."""
    for path in files(*PACKAGES):
        for node in ast.walk(tree(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                limit = 80 if is_kernel(node) else 40
                assert code_lines(node) <= limit, f"{path}: {node.name}, {code_lines(node)} lines"


def broad_handlers(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            if caught in ("everything", "Exception", "BaseException"):
                yield f"{path}:{node.lineno} catches {caught}"


def test_no_handler_catches_every_exception():
    """A handler that swallows everything hides the slow path and the wrong answer."""
    assert [b for path in files(*CODE) for b in broad_handlers(path)] == []


def test_no_code_writes_names_into_a_module():
    for path in files(*PACKAGES, "benchmarks"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Subscript):
                assert "globals()" not in ast.unparse(node.value), f"{path}:{node.lineno}"


def test_no_file_is_read_in_a_way_that_runs_code():
    """torch.load says so where it stands, whatever the default of the torch that is installed."""
    for path in files(*CODE):
        for call in (n for n in ast.walk(tree(path)) if isinstance(n, ast.Call)):
            name, words = (
                ast.unparse(call.func),
                {k.arg: ast.unparse(k.value) for k in call.keywords},
            )
            where = f"{path}:{call.lineno}"
            assert name not in ("pickle.load", "pickle.loads", "joblib.load"), where
            assert name != "torch.load" or words.get("weights_only") == "True", where
            assert name != "np.load" or words.get("allow_pickle", "False") == "False", where


def environment_reads(path):
    """What a file reads from the environment: the literal name, or the expression."""
    for node in ast.walk(tree(path)):
        text = ast.unparse(node) if isinstance(node, (ast.Call, ast.Subscript)) else ""
        if text.startswith(("os.environ", "os.getenv", "environ", "getenv")):
            argument = node.args[0] if isinstance(node, ast.Call) and node.args else None
            argument = node.slice if isinstance(node, ast.Subscript) else argument
            yield path.name, ast.unparse(argument) if argument is not None else text


def test_the_ops_read_one_environment_variable():
    reads = {read for path in files("sslops") for read in environment_reads(path)}
    # Beside it, whether a launcher such as torchrun has arranged where processes meet.
    assert reads == {("registry.py", "'SSLOPS_BACKEND'"), ("verify.py", "os.environ.keys()")}


@pytest.mark.parametrize("folder", ["sslops", "sslzoo"])
def test_every_module_says_what_it_is(folder):
    for path in files(folder):
        assert ast.get_docstring(tree(path)), f"{path} has no docstring"
