"""The host's own LoRA trainer, to be measured against."""

import inspect

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor


def train_as_the_host(
    model: ModelPatcher,
    latents: Tensor,
    positive: list,
    steps: int,
    batch: int,
    rank: int,
    learning_rate: float,
    dtype: str,
    checkpointing: bool,
    bypass: bool = False,
) -> list[float]:
    """The losses of its Train LoRA node. latents: (N, 4, h, w). positive: CONDITIONING, one entry for all or one each.

    dtype: bf16 or fp32, of the UNet and of the LoRA. Raises ValueError for a model that the host cannot load again.
    """
    from comfy_extras.nodes_train import TrainLoraNode

    if getattr(model, "cached_patcher_init", True) is None:
        raise ValueError("The host's trainer needs a model that it can load again. Use one from a file.")
    wanted = {
        "model": [model],
        "latents": [{"samples": latents}],
        "positive": [positive],
        "batch_size": [batch],
        "steps": [steps],
        "grad_accumulation_steps": [1],
        "learning_rate": [learning_rate],
        "rank": [rank],
        "optimizer": ["AdamW"],
        "loss_function": ["MSE"],
        "seed": [0],
        "training_dtype": [dtype],
        "lora_dtype": [dtype],
        "quantized_backward": [False],
        "algorithm": ["LoRA"],
        "gradient_checkpointing": [checkpointing],
        "checkpoint_depth": [1],
        "offloading": [False],
        "existing_lora": ["[None]"],
        "bucket_mode": [False],
        "bypass_mode": [bypass],
    }
    known = inspect.signature(TrainLoraNode.execute).parameters
    with torch.inference_mode():
        output = TrainLoraNode.execute(**{name: value for name, value in wanted.items() if name in known})
    losses = next(value for value in output.args if isinstance(value, dict) and "loss" in value)
    return losses["loss"]
