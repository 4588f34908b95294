"""What a step of concept learning costs beside a straight loop, and which part of the difference comes from where.

The straight loop is textual inversion as public trainers have it: every example's picture is encoded again, all 77
tokens are encoded for every example, and AdamW updates the encoder's whole table, whose other rows are put back. Both
learn six vectors with PyTorch's attention, four examples an update. On CUDA with SD1.5's UNet, text encoder and VAE at
512 x 512 pixels, random weights, bf16; on a CPU with the demo world's nets, fp32.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from ..demo.tasks import draw_tasks
from ..host.backward_room import load_whole
from ..host.concept_text import ConceptText
from ..host.concept_training import concept_at_steps
from ..host.demo_world import DemoModels, load_demo_models
from ..host.gradients import differentiable_layers, gradient_phase, plain_attention
from ..tests.full_size import sd15, sd15_clip, sd_vae
from ..training.concept import BETAS, WEIGHT_DECAY, ConceptSettings, draw_example
from .timing import Comparison, compare

SEED = 70_000_000
STEPS = 5
ACCUMULATION = 4
TOKENS = 6
RATE = 5e-4


@dataclass(frozen=True)
class Scale:
    """models: .model, .clip and .vae. image: (1, H, W, 3)."""

    models: DemoModels | SimpleNamespace
    image: Tensor
    note: str


def scale_here() -> Scale:
    if torch.cuda.is_available():
        models = SimpleNamespace(model=sd15(dtype=torch.bfloat16), clip=sd15_clip(), vae=sd_vae(torch.bfloat16))
        image = torch.rand(1, 512, 512, 3, generator=torch.Generator().manual_seed(SEED))
        return Scale(models, image, "SD1.5's size, bf16")
    return Scale(load_demo_models("text"), draw_tasks([SEED], "show").image, "the demo world's nets, fp32")


@dataclass(frozen=True)
class Straight:
    """The straight loop, and the same with some of its work done once. latents: encode the picture once. text: encode
    the text once an update, and update the concept's own vectors instead of the table.
    """

    models: DemoModels | SimpleNamespace
    image: Tensor
    steps: int
    latents: bool = False
    text: bool = False

    def __call__(self) -> Tensor:
        """The vectors after the steps, (TOKENS, C)."""
        encoder = ConceptText(self.models.clip)
        load_whole(self.models.model, encoder.patcher)
        with torch.inference_mode(False):
            weights = encoder.patcher.model.clip_l.transformer.get_input_embeddings().weight
            start = encoder.start(TOKENS, "", SEED)["clip_l"].to(weights.device)
            table = nn.Parameter(start.clone() if self.text else torch.cat([weights.detach().float(), start]))
            others = table.detach()[:-TOKENS].clone()
            optimizer = torch.optim.AdamW([table], lr=RATE, betas=BETAS, weight_decay=WEIGHT_DECAY)
            once = self._encode() if self.latents else None
        with (
            gradient_phase(self.models.model.model, encoder.patcher.model),
            differentiable_layers(encoder.patcher.model),
        ):
            for step in range(self.steps):
                optimizer.zero_grad()
                text = encoder.encode({"clip_l": table[-TOKENS:]})[0] if self.text else None
                for part in range(ACCUMULATION):
                    clean = self._encode() if once is None else once
                    own = encoder.encode({"clip_l": table[-TOKENS:]})[0] if text is None else text
                    loss = self._loss(clean, own, step, part) / ACCUMULATION
                    loss.backward(retain_graph=text is not None and part < ACCUMULATION - 1)
                optimizer.step()
                table.data[:-TOKENS] = others
        return table.detach()[-TOKENS:]

    @torch.no_grad()
    def _encode(self) -> Tensor:
        latent = self.models.vae.encode(self.image).clone().to(self.models.model.load_device)
        return self.models.model.model.process_latent_in(latent)

    def _loss(self, clean: Tensor, text: Tensor, step: int, part: int) -> Tensor:
        net, dtype = self.models.model.model, self.models.model.model_dtype()
        levels = len(net.model_sampling.sigmas)
        draw = draw_example(SEED, step, part, ACCUMULATION, 1, levels, clean.shape[1:], False)
        sigma = net.model_sampling.sigmas[draw.timestep].to(clean)
        noise = draw.noise.to(clean)
        noised = (clean + sigma * noise) / (1 + sigma**2) ** 0.5
        options = plain_attention({})["transformer_options"]
        timestep = torch.tensor([float(draw.timestep)]).to(clean)
        context = text.to(noised.device, dtype)
        predicted = net.diffusion_model(noised.to(dtype), timestep, context=context, transformer_options=options)
        return (predicted.float() - noise).square().mean()


def learn(models: DemoModels | SimpleNamespace, image: Tensor, steps: int, **settings) -> dict[int, list]:
    """The same by Inlay: the CONDITIONING after the steps."""
    shared = {"tokens": TOKENS, "steps": steps, "accumulation": ACCUMULATION, "learning_rate": RATE, "seed": SEED}
    given = ConceptSettings(**{"objective": "multi", "flips": False, "preview_every": 0, **shared, **settings})
    return concept_at_steps(models.model, models.clip, models.vae, image, given, (steps,))


def run(scale: Scale | None = None) -> Iterator[Comparison]:
    scale = scale or scale_here()
    models, image = scale.models, scale.image
    ours = partial(learn, models, image, STEPS)
    straight = Straight(models, image, STEPS)
    cached = Straight(models, image, STEPS, latents=True)
    own_text = Straight(models, image, STEPS, latents=True, text=True)
    shape = f"{STEPS} updates of {ACCUMULATION} examples, set-up included, {image.shape[1]} x {image.shape[2]} pixels, "
    shape += scale.note

    def row(name: str, one: Callable, other: Callable, note: str) -> Comparison:
        found = compare(name, one, other, note=f"{note}; {shape}")
        rates = " against ".join(f"{STEPS / seconds:.3g}" for seconds in (found.ours_s, found.reference_s))
        return Comparison(**{**vars(found), "note": f"{found.note}; {rates} updates a second"})

    yield row("concept-step", ours, straight, "multi-token inversion; the straight loop takes examples one by one")
    alone = partial(ours, at_once=1)
    yield row("concept-step, one by one", alone, straight, "both take examples one by one")
    yield row("part: latents encoded once", cached, straight, "the straight loop with and without")
    yield row("part: text once an update, no table", own_text, cached, "the straight loop, latents encoded once")
    yield row("part: examples together", ours, alone, "Inlay with and without")
    # The paper's source: where weights are random, nothing stands out from the border.
    focus = partial(ours, objective="saliency focus", mask_source="self-attention")
    yield row("saliency focus", focus, ours, "what S and L_s cost, three looks at the picture before training included")
