"""UNets of SD1.5, SD2.1-v and SDXL at their full width, SD's VAE, text encoder and TAESD, out of ComfyUI's own classes.

All with random weights.

Each UNet's builder takes `depth`: at most so many residual blocks a level, and transformer blocks each (None: all).
Millions of parameters (bf16: two bytes each) with all and with depth 1: SD1.5 860 and 579, SD2.1 866 and 583,
SDXL 2567 and 436 (899 with depth 2).
"""

import math
from types import SimpleNamespace

import torch
from torch import nn


def _fill(module: nn.Module, seed: int) -> None:
    # One short random stretch, repeated: drawing billions of numbers would take longer than the tests.
    pool = torch.rand(2**20 + 7, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                bound = 1 / math.sqrt(parameter[0].numel())
                parts = (pool * bound).to(parameter.dtype)
                flat = parameter.view(-1)
                for start in range(0, flat.numel(), parts.numel()):
                    piece = flat[start : start + parts.numel()]
                    piece.copy_(parts[: piece.numel()])
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def _build(family, levels, middle, residual, depth, dtype, prediction, device="cpu", **config):
    import comfy.model_base
    import comfy.model_management
    import comfy.model_patcher

    limit = math.inf if depth is None else depth
    residual = min(residual, limit)
    levels = [min(level, limit) for level in levels]
    supported = family(
        {
            "image_size": 32,
            "in_channels": 4,
            "out_channels": 4,
            "model_channels": 320,
            "num_res_blocks": [residual] * len(levels),
            "channel_mult": [1, 2, 4, 4][: len(levels)],
            "transformer_depth": [level for level in levels for _ in range(residual)],
            "transformer_depth_output": [level for level in levels for _ in range(residual + 1)],
            "transformer_depth_middle": min(middle, limit),
            "use_spatial_transformer": True,
            "use_temporal_attention": False,
            "legacy": False,
            **config,
        }
    )
    supported.set_inference_dtype(dtype, None)
    supported.model_type = lambda *_: prediction
    model = supported.get_model({}, device=device)
    _fill(model.diffusion_model, seed=0)
    model.requires_grad_(False)
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


def sd15(depth: int | None = None, dtype: torch.dtype = torch.bfloat16, device: str = "cpu"):
    """SD1.5 as a ModelPatcher: eps, text of width 768. On the device `meta` it has shapes alone."""
    from comfy.model_base import ModelType
    from comfy.supported_models import SD15

    config = {"use_linear_in_transformer": False, "context_dim": 768, "adm_in_channels": None}
    return _build(SD15, [1, 1, 1, 0], 1, 2, depth, dtype, ModelType.EPS, device, **config)


def sd21_v(depth: int | None = None, dtype: torch.dtype = torch.bfloat16):
    """SD2.1 as a ModelPatcher: v, linear projections, text of width 1024."""
    from comfy.model_base import ModelType
    from comfy.supported_models import SD20

    config = {"use_linear_in_transformer": True, "context_dim": 1024, "adm_in_channels": None}
    return _build(SD20, [1, 1, 1, 0], 1, 2, depth, dtype, ModelType.V_PREDICTION, **config)


def sdxl(depth: int | None = None, dtype: torch.dtype = torch.bfloat16):
    """SDXL as a ModelPatcher: eps, text of width 2048, `pooled_output` of width 1280 in the conditioning."""
    from comfy.model_base import ModelType
    from comfy.supported_models import SDXL

    config = {"use_linear_in_transformer": True, "context_dim": 2048, "num_classes": "sequential"}
    return _build(SDXL, [0, 2, 10], 10, 2, depth, dtype, ModelType.EPS, adm_in_channels=2816, **config)


def sd_vae(dtype: torch.dtype = torch.float32):
    """The VAE of SD1.x as the host's object: 84 million parameters."""
    import comfy.ldm.models.autoencoder
    import comfy.sd

    shape = {"z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4]}
    shape = {**shape, "double_z": True, "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    net = comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=dict(shape), embed_dim=4)
    _fill(net, seed=1)
    config = {"params": {"ddconfig": dict(shape), "embed_dim": 4}}
    vae = comfy.sd.VAE(sd=net.state_dict(), config=config, dtype=dtype)
    vae.first_stage_model.requires_grad_(False)
    return vae


def sd15_clip():
    """The text encoder of SD1.x as the host's object: 123 million parameters."""
    import comfy.sd
    import comfy.sd1_clip

    target = SimpleNamespace(params={}, clip=comfy.sd1_clip.SD1ClipModel, tokenizer=comfy.sd1_clip.SD1Tokenizer)
    clip = comfy.sd.CLIP(target, disable_dynamic=True)
    _fill(clip.cond_stage_model.clip_l.transformer, seed=3)
    clip.cond_stage_model.requires_grad_(False)
    return clip


def taesd():
    """SD's small preview decoder, as the host's object."""
    import comfy.taesd.taesd

    net = comfy.taesd.taesd.TAESD(None, None, latent_channels=4)
    # Not the whole: its scale is a parameter too.
    _fill(net.taesd_decoder, seed=2)
    return net.requires_grad_(False)


def conditioning(width: int, seed: int = 0, length: int = 77) -> list:
    """Random CONDITIONING of that width, with a pooled output for SDXL."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(1, length, width, generator=generator)
    return [[text, {"pooled_output": torch.randn(1, 1280, generator=generator)}]]
