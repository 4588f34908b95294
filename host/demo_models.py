"""The demo world's models out of ComfyUI's own classes. Without a state dict the weights are random and seeded."""

import copy
import json
import logging
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path

import comfy.clip_model
import comfy.clip_vision
import comfy.ldm.models.autoencoder
import comfy.ldm.modules.diffusionmodules.openaimodel
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import torch
from torch import Tensor, nn

StateDict = Mapping[str, Tensor]

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


def initialise(module: nn.Module, seed: int) -> None:
    """Fills every parameter: the host's layers leave their memory uninitialised.

    Weights are uniform in +-1/sqrt(fan_in), biases 0, norms 1 and 0.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        with torch.no_grad():
            if parameter.ndim > 1:
                bound = 1 / math.sqrt(parameter[0].numel())
                parameter.copy_(torch.rand(parameter.shape, generator=generator).mul_(2 * bound).sub_(bound))
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)


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
TEXT_CONFIG = {
    "num_hidden_layers": 3,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "eos_token_id": 49407,
    "projection_dim": 128,
}
VISION_CONFIG = {
    "model_type": "clip_vision_model",
    "num_hidden_layers": 4,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "hidden_act": "quick_gelu",
    "image_size": 64,
    "patch_size": 8,
    "num_channels": 3,
    "projection_dim": 128,
}
VOCABULARY = 49408
TOKEN_TABLE = "text_model.embeddings.token_embedding.weight"


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


class DemoTokenizer(comfy.sd1_clip.SDTokenizer):
    """The stock tokenizer for narrow embeddings; names words that are not among its `known` ids, once they are set."""

    known: frozenset[int] | None = None

    def __init__(self, **options: object) -> None:
        super().__init__(**{**options, "embedding_size": TEXT_CONFIG["hidden_size"]})

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **options: object) -> list:
        batches = super().tokenize_with_weights(text, return_word_ids, **options)
        if self.known is not None:
            ids = [pair[0] for batch in batches for pair in batch if isinstance(pair[0], int)]
            unknown = [self.inv_vocab[token] for token in dict.fromkeys(ids) if token not in self.known]
            if unknown:
                words = ", ".join(word.removesuffix("</w>") for word in unknown)
                logging.warning("Inlay's demo text encoder was never taught these words: %s.", words)
        return batches


class _Target:
    params: dict = {}
    clip = comfy.sd1_clip.SD1ClipModel
    tokenizer = comfy.sd1_clip.SD1Tokenizer


def build_text_encoder(state_dict: StateDict, embeddings: list[str] | None = None) -> comfy.sd.CLIP:
    """The host's CLIP, keys as in comfy.clip_model.CLIPTextModel. embeddings: folders of `embedding:` files."""

    return comfy.sd.CLIP(
        _Target,
        embedding_directory=embeddings,
        tokenizer_data={"clip_l_tokenizer_class": DemoTokenizer},
        state_dict={f"clip_l.transformer.{key}": value for key, value in state_dict.items()},
        model_options={"clip_l_model_config": TEXT_CONFIG, "dtype": torch.float32},
        disable_dynamic=True,
    )


def build_bare_text_encoder(seed: int = 0) -> nn.Module:
    net = comfy.clip_model.CLIPTextModel(TEXT_CONFIG, torch.float32, "cpu", comfy.ops.disable_weight_init)
    initialise(net, seed)
    return net


def build_bare_vision(seed: int = 0) -> nn.Module:
    net = comfy.clip_model.CLIPVisionModelProjection(VISION_CONFIG, torch.float32, "cpu", comfy.ops.disable_weight_init)
    initialise(net, seed)
    return net


def build_vision(state_dict: StateDict) -> comfy.clip_vision.ClipVisionModel:
    """The host's CLIP_VISION around those weights."""
    # Hosts before 0.24 take the configuration from a file only.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vision.json")
        path.write_text(json.dumps(VISION_CONFIG))
        vision = comfy.clip_vision.ClipVisionModel(str(path))
    vision.model.float()
    vision.dtype = torch.float32
    vision.load_sd(dict(state_dict))
    vision.model.requires_grad_(False)
    return vision


def expand_vocabulary(rows: Tensor, ids: Tensor) -> Tensor:
    """The stock tokenizer's whole table from the rows in use; unused rows are drawn, seeded, from their statistics.

    rows: (n, C). ids: (n,) int64. Returns (VOCABULARY, C) fp32.
    """
    rows = rows.float()
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(VOCABULARY, rows.shape[1], generator=generator)
    table = table * rows.std(0, keepdim=True) + rows.mean(0, keepdim=True)
    table[ids] = rows
    return table


def split_clip(tensors: StateDict) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Text and vision weights out of the one CLIP file, the vocabulary at its full size."""
    text, vision = (weights_under(tensors, prefix) for prefix in ("text.", "vision."))
    text[TOKEN_TABLE] = expand_vocabulary(text[TOKEN_TABLE], tensors["token_ids"].long())
    return text, vision


def weights_under(tensors: StateDict, prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def token_ids(texts: list[str]) -> Tensor:
    """The stock tokenizer's ids, (len(texts), 77), padded as the host pads."""
    tokenizer = comfy.sd1_clip.SDTokenizer()
    rows = [[token for token, _ in tokenizer.tokenize_with_weights(text)[0]] for text in texts]
    return torch.tensor(rows)


def allow_gradients(net: nn.Module) -> None:
    """The host's CLIP layers add in place to what their norms have saved; norms of a copy save a copy."""
    for layer in net.modules():
        if isinstance(layer, comfy.clip_model.CLIPLayer):
            for norm in (layer.layer_norm1, layer.layer_norm2):
                norm.register_forward_pre_hook(lambda _, inputs: (inputs[0].clone(), *inputs[1:]))


def build_short_text_encoder(rows: int, positions: int, seed: int = 0) -> nn.Module:
    """The text encoder for training: a table of the words in use only, and short sentences."""
    config = {**TEXT_CONFIG, "max_position_embeddings": positions, "eos_token_id": rows - 1}
    net = comfy.clip_model.CLIPTextModel(config, torch.float32, "cpu", comfy.ops.disable_weight_init)
    net.text_model.embeddings.token_embedding = comfy.ops.disable_weight_init.Embedding(rows, config["hidden_size"])
    initialise(net, seed)
    allow_gradients(net)
    return net
