"""A prompt that is one concept: its vectors as tokens of the host's text encoders, SD1's, SD2's or SDXL's two."""

from collections.abc import Mapping

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..training.concept import Vectors, initial_vectors
from .gradients import static_patcher

ENCODERS = ("l", "h", "g")
# A prompt's 77 places less its start and its end.
MOST_TOKENS = 75


class ConceptText:
    """What `embedding:name` alone in a prompt would be to this CLIP, for vectors that are not in a file yet.

    patcher: what has to be loaded before `encode`; its `.model` is what the gradient goes through. Raises ValueError
    for a missing CLIP and for text encoders that are no CLIP.
    """

    def __init__(self, clip: comfy.sd.CLIP | None) -> None:
        if clip is None:
            raise ValueError("There is no text encoder. Connect the model's clip.")
        self.clip = clip
        self.patcher: ModelPatcher = static_patcher(clip.patcher)
        self.empty = clip.tokenize("")
        if not set(self.empty) <= set(ENCODERS):
            raise ValueError(
                f"This text encoder ({', '.join(self.empty)}) takes no learned concept. Use SD1.x, SD2.x or SDXL."
            )

    def start(self, tokens: int, word: str, seed: int) -> Vectors:
        """{clip_l: (tokens, C), ...} fp32 to start from: the word's own vectors, or the table's statistics."""
        if not 1 <= tokens <= MOST_TOKENS:
            raise ValueError(f"A concept of {tokens} tokens does not fit into a prompt. Use 1 to {MOST_TOKENS}.")
        words = self.clip.tokenize(word.strip(), return_word_ids=True) if word.strip() else {}
        generator = torch.Generator().manual_seed(seed)
        vectors = {}
        for name in self.empty:
            table = getattr(self.patcher.model, f"clip_{name}").transformer.get_input_embeddings().weight
            ids = [token for chunk in words.get(name, ()) for token, _, part in chunk if part != 0]
            known = [token.to(table) if isinstance(token, Tensor) else table[token] for token in ids]
            known = torch.stack(known) if known else None
            vectors[f"clip_{name}"] = initial_vectors(table, tokens, known, generator)
        return vectors

    def tokens(self, vectors: Mapping[str, Tensor]) -> dict[str, list]:
        """The host's tokens of the prompt."""
        sequences = {}
        for name, ((start, *rest),) in self.empty.items():
            own = [(vector, 1.0) for vector in vectors[f"clip_{name}"]]
            sequences[name] = [[start, *own, *rest[: len(rest) - len(own)]]]
        return sequences

    def encode(self, vectors: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Tensor | None]:
        """(conditioning, pooled output) with their gradients, of the empty prompt without vectors.

        Unlike CLIP.encode_from_tokens it does not ask for the encoder to be loaded, which could unload the UNet.
        """
        net = self.patcher.model
        net.reset_clip_options()
        if self.clip.layer_idx is not None:
            net.set_clip_options({"layer": self.clip.layer_idx})
        net.set_clip_options({"execution_device": self.patcher.load_device})
        return net.encode_token_weights(self.empty if vectors is None else self.tokens(vectors))[:2]

    def conditioning(self, vectors: Mapping[str, Tensor]) -> list:
        """The host's CONDITIONING of the prompt."""
        with torch.no_grad():
            return self.clip.encode_from_tokens_scheduled(self.tokens(vectors))
