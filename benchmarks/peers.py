"""A file of benchmarks/baselines, and what holds where it says nothing.

baselines(case, device, dtype)  the floor, then eager or published code, then peers: Variants
ours(op, backend, case)         how the op is called; else sslops.<op>(*tensors, **case.options)
inputs(case, device, dtype, seed)  the tensors of a call; else those of case.inputs
small(case)                     the same call at a small size; else case.small()
form(case)                      the key of data/floors.json; else the op's name
part(case, rows, *tensors)      the share of some rows in the loss, for the gate at any size
check(op, backend, ours, eager, case, device, dtype)  what is correct; else gate.check
"""

import functools
import importlib

import sslops
from benchmarks import gate
from benchmarks.measure import Variant


class Peers:
    """The peers of one op."""

    def __init__(self, op):
        self.op = op
        self.module = importlib.import_module(f"benchmarks.baselines.{op}")
        self.baselines = self.module.baselines

    def or_else(self, name, default):
        return getattr(self.module, name, default)

    def ours(self, backend, case):
        return self.or_else("ours", own_variant)(self.op, backend, case)

    def inputs(self, case, device, dtype, seed=0):
        return self.or_else("inputs", case_inputs)(case, device, dtype, seed)

    def small(self, case):
        return self.or_else("small", lambda case: case.small())(case)

    def form(self, case):
        return self.or_else("form", lambda case: self.op)(case)

    @property
    def part(self):
        return self.or_else("part", None)

    def check(self, backend, ours, eager, case, device, dtype):
        """Stop the run unless ours is correct."""
        check = self.or_else("check", functools.partial(gate.check, self))
        check(self.op, backend, ours, eager, case, device, dtype)


def own_variant(op, backend, case):
    function = getattr(sslops, op)
    return Variant("sslops", lambda *tensors: function(*tensors, **case.options, backend=backend))


def case_inputs(case, device, dtype, seed):
    return case.inputs(device, dtype, seed)[0]
