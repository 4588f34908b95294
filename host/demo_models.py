"""The demo world's models out of ComfyUI's own classes. Without a state dict the weights are random and seeded.

VAE and UNet are here; the CLIP pair of demo_clip can be had from here too.
"""

import copy

import comfy.ldm.models.autoencoder
import comfy.ldm.modules.diffusionmodules.openaimodel
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models
import torch
from torch import nn

from .demo_clip import (
    TEXT_CONFIG,
    TOKEN_TABLE,
    VISION_CONFIG,
    VOCABULARY,
    allow_gradients,
    build_bare_text_encoder,
    build_bare_vision,
    build_short_text_encoder,
    build_text_encoder,
    build_vision,
    expand_vocabulary,
    split_clip,
    token_ids,
)
from .demo_parts import StateDict, initialise, weights_under

__all__ = [
    "TEXT_CONFIG",
    "TOKEN_TABLE",
    "UNET_CONFIG",
    "VAE_CONFIG",
    "VISION_CONFIG",
    "VOCABULARY",
    "allow_gradients",
    "build_autoencoder",
    "build_bare_text_encoder",
    "build_bare_vision",
    "build_model",
    "build_short_text_encoder",
    "build_text_encoder",
    "build_unet",
    "build_vae",
    "build_vision",
    "expand_vocabulary",
    "initialise",
    "narrow_groups",
    "split_clip",
    "token_ids",
    "weights_under",
]

VAE_CONFIG = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 128,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1, 2, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}


def narrow_groups(module: nn.Module) -> None:
    """Four channels a norm group. The host's fixed 32 groups would be instance norm on nets this narrow."""
    for layer in module.modules():
        if isinstance(layer, nn.GroupNorm):
            layer.num_groups = layer.num_channels // 4


def build_autoencoder(seed: int = 0) -> nn.Module:
    """The bare KL autoencoder, random weights, 128 x 128 pixels to 16 x 16 x 4."""
    net = comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=copy.deepcopy(VAE_CONFIG), embed_dim=4)
    initialise(net, seed)
    narrow_groups(net)
    return net


def build_vae(state_dict: StateDict) -> comfy.sd.VAE:
    """The host's VAE object around those weights."""
    config = {"params": {"ddconfig": copy.deepcopy(VAE_CONFIG), "embed_dim": 4}}
    vae = comfy.sd.VAE(sd=dict(state_dict), config=config, dtype=torch.float32)
    narrow_groups(vae.first_stage_model)
    vae.first_stage_model.requires_grad_(False)
    return vae


UNET_CONFIG = {
    "image_size": 16,
    "out_channels": 4,
    "model_channels": 64,
    "num_res_blocks": [1, 1, 1],
    "channel_mult": [1, 2, 2],
    "transformer_depth": [1, 1, 1],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 128,
    "num_heads": 2,
    "num_head_channels": -1,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "legacy": False,
}


class DemoSD(comfy.supported_models.SD15):
    """SD1.x in every way but its widths, which `unet_config` of the class would insist on."""

    unet_config = {}
    unet_extra_config = {}


def build_unet(in_channels: int = 4, seed: int = 0) -> nn.Module:
    """The bare UNet with random weights; 4 channels in for text, 9 for inpainting."""
    config = {**copy.deepcopy(UNET_CONFIG), "in_channels": in_channels}
    net = comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel(
        **config, dtype=torch.float32, operations=comfy.ops.disable_weight_init
    )
    initialise(net, seed)
    return net


def build_model(state_dict: StateDict, prediction: str = "eps", **config: object) -> comfy.model_patcher.ModelPatcher:
    """The host's MODEL around those UNet weights. prediction: eps or v. config overrides UNET_CONFIG."""
    in_channels = state_dict["input_blocks.0.0.weight"].shape[1]
    supported = DemoSD({**copy.deepcopy(UNET_CONFIG), "in_channels": in_channels, **config})
    supported.set_inference_dtype(torch.float32, None)
    if prediction == "v":
        supported.model_type = lambda *_: comfy.model_base.ModelType.V_PREDICTION
    load_device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()

    def load(_, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
        model = supported.get_model(dict(state_dict), "", device=offload_device)
        model.load_model_weights(dict(state_dict), "")
        model.requires_grad_(False)
        return comfy.model_patcher.ModelPatcher(model, load_device=load_device, offload_device=offload_device)

    patcher = load(None)
    # The host's trainer and its multi-device path reload a model through this.
    patcher.cached_patcher_init = (load, (None,))
    return patcher
