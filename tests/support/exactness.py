"""What a test may ask of numbers: equal bits of copies and of one computation done twice, close
values of all else.
"""

import torch


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    """Weights are copied, not computed: their bits are equal on every machine."""
    weights = one.state_dict()
    others = other.state_dict()
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def assert_close(value: torch.Tensor, expected: torch.Tensor) -> None:
    """For float32 that two computations give: the processor's kernels choose the order of their
    sums.

    So do they for one network twice, where its weights lie otherwise in memory, as those read from
    a file do.
    """
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
