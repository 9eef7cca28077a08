"""Which backends an op has, and the first that can run.

A backend of op `name` is the module `sslops/ops/name/_<backend>.py` (the specification is
`reference.py`). It defines a function called like the op and `unsupported(...)`, which takes the
same arguments and returns None or, in words, the reason why this backend cannot run them. A folder
may hold several ops, which share its backends: `load(folder, ..., function=name)`. A backend from
outside the package comes in by `register`.
"""

import importlib
import inspect
import os

import torch

# Read once: a value that changed during a run would make a compiled graph and eager code disagree.
FORCED_BACKEND = os.environ.get("SSLOPS_BACKEND") or None

OPS: dict[str, "Op"] = {}


class Op:
    """The backends of one op, in the order in which they are tried."""

    def __init__(self, folder, name, backend_names):
        self.folder = folder
        self.name = name
        self.order = backend_names
        self.backends = {}  # backend name -> (function, unsupported)
        self.missing = {}  # backend name -> why its module could not be imported
        interpreted = set()
        for backend in backend_names:
            module_name = backend if backend == "reference" else f"_{backend}"
            try:
                module = importlib.import_module(f"sslops.ops.{folder}.{module_name}")
            except ModuleNotFoundError as error:
                # Only a missing compiler or Triton excuses a backend; a typo in one must surface.
                if error.name not in ("triton", "sslops._C"):
                    raise
                self.missing[backend] = f"{error.name} is not installed"
            else:
                self.backends[backend] = (getattr(module, name), module.unsupported)
                if getattr(module, "INTERPRETED", False):
                    interpreted.add(backend)
        # Kernels under an interpreter are for tests: they run where forced, else last of all.
        self.backends = dict(sorted(self.backends.items(), key=lambda item: item[0] in interpreted))

    def __call__(self, forced, *args, **kwargs):
        """Run the forced backend, or the first that supports these arguments."""
        forced = forced or FORCED_BACKEND
        if forced is not None:
            reason = self.why_not(forced, *args, **kwargs)
            if reason is not None:
                raise RuntimeError(f"{self.name}: backend {forced!r} cannot run here: {reason}")
            return self.backends[forced][0](*args, **kwargs)
        for function, unsupported in self.backends.values():
            if unsupported(*args, **kwargs) is None:
                return function(*args, **kwargs)
        raise RuntimeError(f"{self.name}: no backend supports these arguments")

    def why_not(self, backend, *args, **kwargs):
        """None if the backend runs these arguments, else the reason in words."""
        if backend in self.missing:
            return self.missing[backend]
        if backend not in self.backends:
            known = ", ".join([*self.backends, *self.missing])
            raise ValueError(f"{self.name}: backend must be one of {known}; got {backend!r}")
        return self.backends[backend][1](*args, **kwargs)


def load(folder, *backend_names, function=None):
    """Import the backends of an op, in order of preference, and remember the op."""
    name = function or folder
    OPS[name] = Op(folder, name, backend_names)
    return OPS[name]


def register(op, backend, module):
    """Add a backend of your own to an op; it is tried before the others, or forced by its name.

    Call it once, before the op is first compiled. `op` is a name that `sslops.backends()` prints.

    Args:
        op: name of the op.
        backend: name of the backend, one that the op does not have.
        module: a module, or any object, with two functions of the same arguments, which the op's
            `sslops/ops/*/__init__.py` documents: one called like the op, and `unsupported`, which
            returns None if the other can run them, else the reason in words.

    Raises:
        ValueError: an unknown op, or a name that is taken.
        TypeError: a function is missing, or takes other arguments than the specification.

    Example: examples/custom_backend.py.
    """
    if op not in OPS:
        raise ValueError(f"op must be one of {', '.join(OPS)}; got {op!r}")
    chosen = OPS[op]
    if backend in chosen.order:
        raise ValueError(f"{op} has a backend {backend!r} already: choose another name")
    for name in (op, "unsupported"):
        if not callable(getattr(module, name, None)):
            raise TypeError(f"backend {backend!r} of {op} must define a function {name}")
    function, expected = getattr(module, op), inspect.signature(chosen.backends["reference"][0])
    if inspect.signature(function) != expected:
        got = inspect.signature(function)
        raise TypeError(f"{op} of backend {backend!r} must take {expected}; got {got}")
    chosen.order = (backend, *chosen.order)
    chosen.backends = {backend: (function, module.unsupported), **chosen.backends}


def backends(device=None):
    """Print every op, its backends, which of them would run here, and why the others would not.

    Args:
        device: "cpu" or "cuda"; None takes CUDA where there is one.
    """
    device = device or default_device()
    print(f"sslops on {device}, torch {torch.__version__}")
    for name, reasons in availability(device).items():
        print(name)
        first = next((b for b, reason in reasons.items() if reason is None), None)
        for backend, reason in reasons.items():
            state = f"no: {reason}" if reason else "yes" + ", taken by default" * (backend == first)
            print(f"    {backend:<10} {state}")


def availability(device=None):
    """{op: {backend: None if it would run here, else why not}}, in the order of preference.

    Args:
        device: "cpu" or "cuda"; None takes CUDA where there is one.
    """
    device = device or default_device()
    found = {}
    for op in OPS.values():
        cases = importlib.import_module(f"sslops.ops.{op.folder}.cases")
        example = "example" if op.name == op.folder else f"example_{op.name}"
        args, kwargs = getattr(cases, example)(device)
        found[op.name] = {backend: op.why_not(backend, *args, **kwargs)
                          for backend in [*op.backends, *op.missing]}  # fmt: skip
    return found


def default_device():
    """CUDA where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"
