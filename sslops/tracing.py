"""What torch.compile has to be told, without loading it: that takes seconds at every import."""


def constant_when_traced(function):
    """`torch.compiler.assume_constant_result`, which would import torch._dynamo for one attribute.

    tests/test_import.py holds that the two do the same.
    """
    function._dynamo_marked_constant = True
    return function
