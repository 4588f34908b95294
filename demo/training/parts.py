"""The finished parts that later training stands on: VAE, text and vision towers."""

import torch
from torch import Tensor

from ...host import demo_models
from ..weights import load_part, tower_hash
from .clip import clip_pixels
from .vae import latents_hash


class Parts:
    """Frozen encoders on one device."""

    def __init__(self, device: str) -> None:
        self.device = device
        autoencoder = load_part("vae")
        # What a UNet stands on: its checkpoint is worth nothing on other latents, texts or embeddings of pictures.
        # Decoders may change.
        self.latents_hash = latents_hash(autoencoder)
        self.texts_hash, self.vision_hash = tower_hash("text"), tower_hash("vision")
        self.vae = demo_models.build_autoencoder()
        self.vae.load_state_dict(autoencoder)
        text, vision = demo_models.split_clip(load_part("clip"))
        self.text = demo_models.build_bare_text_encoder()
        self.text.load_state_dict(text)
        self.vision = demo_models.build_bare_vision()
        self.vision.load_state_dict(vision)
        for net in (self.vae, self.text, self.vision):
            net.to(device).eval().requires_grad_(False)
        self._states: dict[str, Tensor] = {}

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """image: (B, H, W, 3) in [0, 1]. Latent means (B, 4, h, w) as VAE.encode gives them, on the CPU."""
        pixels = image.permute(0, 3, 1, 2) * 2 - 1
        with torch.autocast(self.device, torch.bfloat16):
            moments = self.vae.quant_conv(self.vae.encoder(pixels))
        return moments.float().chunk(2, 1)[0].cpu()

    @torch.no_grad()
    def remember(self, texts: list[str]) -> None:
        """Encodes what is new among the texts, and keeps it in bfloat16."""
        new = [text for text in dict.fromkeys(texts) if text not in self._states]
        if new:
            for some, ids in zip(_chunks(new, 256), demo_models.token_ids(new).split(256), strict=True):
                self._states.update(zip(some, self.text(ids.to(self.device))[0].bfloat16(), strict=True))

    def text_states(self, texts: list[str]) -> Tensor:
        """(len(texts), 77, 128), what CLIPTextEncode would give."""
        self.remember(texts)
        return torch.stack([self._states[text] for text in texts]).float()

    @torch.no_grad()
    def picture_states(self, image: Tensor) -> Tensor:
        """(B, 128) pooled states of the vision tower, before its projection."""
        return self.vision.vision_model(clip_pixels(image))[2].float()


def _chunks(texts: list[str], size: int) -> list[list[str]]:
    return [texts[first : first + size] for first in range(0, len(texts), size)]
