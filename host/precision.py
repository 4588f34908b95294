"""What a model computes in while it is trained."""

import torch
from comfy.model_patcher import ModelPatcher

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
PRECISIONS = ("auto", *_DTYPES)


def set_precision(model: ModelPatcher, precision: str) -> None:
    """precision: of PRECISIONS; auto leaves the model as it is loaded."""
    if precision != "auto":
        model.set_model_compute_dtype(_DTYPES[precision])
