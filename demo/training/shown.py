"""Things told by a picture in place of words, so that the text UNet has embeddings to draw what no word names.

A large model's vocabulary spans far more than any caption of ours; a concept learned as embeddings is found only where
the model draws something for them. While the UNet trains, some captions hold tokens projected from a picture of the
thing; nothing of that is in the shipped graph, which sees words and learned embeddings only.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ...host.demo_models import allow_gradients, build_bare_text_encoder, token_ids
from ..captions import caption
from ..scenes import uniform_draws
from ..vocabulary import RARE_WORDS
from .parts import Parts
from .reference_data import reference_data, scenes_of

TOKENS = 4
# Its tokens stand where the projected ones go.
PLACEHOLDER = RARE_WORDS[0]
# How often the picture of the thing is the one that is to be painted, and not another one.
OWN_SHARE = 0.25


def projection() -> nn.Module:
    """(B, 128) pooled states of pictures to (B, TOKENS * 128) token embeddings."""
    return nn.Sequential(nn.LayerNorm(128), nn.Linear(128, TOKENS * 128))


class Telling:
    """The frozen text tower, which takes projected tokens among those of words."""

    def __init__(self, parts: Parts) -> None:
        self.text = build_bare_text_encoder()
        self.text.load_state_dict(parts.text.state_dict())
        self.text.to(parts.device).eval().requires_grad_(False)
        allow_gradients(self.text)
        self.placeholder = int(token_ids([PLACEHOLDER])[0, 1])
        table = self.text.get_input_embeddings().weight
        self.thing = table[int(token_ids(["thing"])[0, 1])].clone()
        self.spread = float(table.std())

    def states(self, ids: Tensor, tokens: Tensor) -> Tensor:
        """ids: (B, 77), of which TOKENS a row are the placeholder. tokens: (B, TOKENS * 128). Returns (B, 77, 128)."""
        embeddings = self.text.get_input_embeddings().weight[ids]
        told = self.thing + self.spread * tokens.float().view(-1, embeddings.shape[-1])
        places = ids == self.placeholder
        embeddings = embeddings.masked_scatter(places[..., None].expand_as(embeddings), told)
        ends = (ids == ids.max()).int().argmax(1) + 1
        return self.text(None, embeds=embeddings, num_tokens=ends.tolist())[0]


def shown_things(parts: Parts, folder: Path, count: int, device: str) -> dict[str, Tensor]:
    """Scenes of one thing: latent, mask, own and other as for the inpainting model, ids (n, 77), unnamed (n,) bool."""
    data = reference_data(parts, folder, count, device)
    words = " ".join([PLACEHOLDER] * TOKENS)
    texts, kept, unnameable = [], [], []
    for first in range(0, count, 256):
        scenes = scenes_of(first, min(first + 256, count))
        kept.append(scenes.count == 1)
        unnameable.append(scenes.shape[:, 0] < 0)
        unnamed = torch.full_like(scenes.shape, -1)
        unnamed = replace(scenes, shape=unnamed, colour=unnamed, surface=unnamed)
        wording = uniform_draws(scenes.seed, 1, 9)[:, 0].tolist()
        texts += [caption(unnamed, row, wording=draw) for row, draw in enumerate(wording)]
    single = torch.cat(kept)
    ids = token_ids([text.replace("thing", words) for text in texts])
    rows = {name: data[name] for name in ("latent", "mask", "own", "other")}
    return {name: value[single] for name, value in {**rows, "ids": ids, "unnamed": torch.cat(unnameable)}.items()}
