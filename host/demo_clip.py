"""The demo world's CLIP pair out of ComfyUI's own classes, text and vision."""

import json
import logging
import tempfile
from pathlib import Path

import comfy.clip_model
import comfy.clip_vision
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import torch
from torch import Tensor, nn

from .demo_parts import StateDict, initialise, weights_under

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
