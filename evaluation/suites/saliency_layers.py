"""What one layer's attention says of a thing, at one noise level: for the suite `saliency`."""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ...attention.cross_maps import spread, word_map
from ...attention.saliency import column_sums, resize_map
from ...host.attention_capture import Seen, watch_attention
from ...host.attention_layers import layer_grids
from ...host.attention_pass import clean_forwards, draw_noises
from ...host.demo_world import DemoModels
from ...host.tokens import concept_positions, encode_text
from ..localising import overlap, separation
from ..records import Measured

TIMESTEPS = (100, 300, 500, 700)


def layer_rows(models: DemoModels, latent: Tensor, words: tuple[str, str], truth: Tensor, seed: int) -> list[Measured]:
    """Rows of the report for every layer and timestep. latent: (1, 4, h, w). words: the prompt and a word of it.
    truth: (1, H, W). Self-attention is read under the prompt too, so that one forward shows both.
    """
    prompt, word = words
    positions = concept_positions(models.clip, prompt, word)
    layers = list(layer_grids(models.model.get_model_object("diffusion_model"), *latent.shape[-2:]))
    rows: list[Measured] = []
    now = [0.0]

    def report(seen: Seen) -> None:
        where = f"{seen.layer[0]} {seen.layer[1]}, {seen.grid[0]} x {seen.grid[1]}, t {now[0]:g}"
        if seen.kind == "self":
            rows.append(Measured(f"column sum, {where}", seed, column_sum_values(seen, truth)))
            return
        found = word_map(seen.queries, seen.keys, seen.heads, positions).unflatten(1, seen.grid).cpu()
        found = resize_map(found, *truth.shape[-2:])
        low, high = found.amin(), found.amax()
        mask = (found >= (low + high) / 2).float()
        values = {"AUC": float(separation(found, truth)), "IoU": float(overlap(mask, truth))}
        rows.append(Measured(f"word, {where}", seed, values))

    with clean_forwards(watch_attention(models.model, layers, report), encode_text(models.clip, prompt), latent) as run:
        for timestep, noise in zip(TIMESTEPS, draw_noises(0, latent, len(TIMESTEPS)), strict=True):
            now[0] = timestep
            run(timestep, noise)
    return rows


def column_sum_values(seen: Seen, truth: Tensor) -> dict[str, float | None]:
    """Whether O separates the thing, above 1 or below it, and where attention goes.

    kept: the share of the thing's own attention that stays on it. given: the share of the surroundings' that goes to
    it. As O counts them, O on thing = kept + given * surroundings / thing.
    """
    cells = adaptive_avg_pool2d(truth[:, None], seen.grid).flatten(1).to(seen.queries.device)
    received = column_sums(seen.queries, seen.keys, seen.heads)
    to_thing = spread(seen.queries, seen.keys, seen.heads, cells)
    on, beside = cells.sum(), (1 - cells).sum()
    scores = resize_map(received.unflatten(1, seen.grid).cpu(), *truth.shape[-2:])
    values = {
        "AUC": separation(scores, truth),
        "IoU above 1": overlap((scores >= 1).float(), truth),
        "IoU below 1": overlap((scores < 1).float(), truth),
        "O on thing": (received * cells).sum() / on,
        "kept": (to_thing * cells).sum() / on,
        "given": (to_thing * (1 - cells)).sum() / beside,
        "share of thing": on / cells.numel(),
    }
    return {name: float(value) if torch.isfinite(value) else None for name, value in values.items()}
