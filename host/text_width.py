"""The width of the texts that a model reads, and the sentence for texts of another one."""

from comfy.ldm.pixart.pixartms import PixArtMS
from comfy.model_patcher import ModelPatcher
from torch import Tensor


def context_width(model: ModelPatcher) -> int | None:
    """The width of the texts that the model reads; None where neither it nor its configuration says."""
    network = model.get_model_object("diffusion_model")
    if isinstance(network, PixArtMS):
        return network.y_embedder.y_proj.fc1.in_features
    return model.model.model_config.unet_config.get("context_dim")


def reads(model: ModelPatcher, contexts: Tensor) -> bool:
    """Whether contexts (..., C) are as wide as the model reads texts."""
    return context_width(model) in (None, contexts.shape[-1])


def require_width(
    model: ModelPatcher,
    contexts: Tensor,
    advice: str = "Connect the CLIP that belongs to the model.",
) -> None:
    """Raises ValueError, ending with the advice, for contexts (..., C) of another width than the model's."""
    if not reads(model, contexts):
        raise ValueError(
            f"The texts are {contexts.shape[-1]} wide and the model takes {context_width(model)}. {advice}"
        )
