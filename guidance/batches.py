"""Batches that go together."""

from torch import Tensor


def as_one_batch(*tensors: Tensor) -> list[Tensor]:
    """The tensors repeated in turn, as the host repeats, to the largest of their batches.

    Raises ValueError where a batch does not divide the largest.
    """
    rows = max(len(tensor) for tensor in tensors)
    if any(rows % len(tensor) for tensor in tensors):
        sizes = ", ".join(str(len(tensor)) for tensor in tensors)
        raise ValueError(f"The batches do not go together ({sizes}). Give one of each for all, or as many of each.")
    return [tensor.repeat(rows // len(tensor), *[1] * (tensor.ndim - 1)) for tensor in tensors]
