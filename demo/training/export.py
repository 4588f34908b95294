"""From a finished run to committed weights."""

import platform

import torch
from torch import Tensor

from ...host.demo_models import TOKEN_TABLE, VOCABULARY, build_autoencoder
from ..weights import FOR_TRAINING, file_hash, load_part, read_card, save_part, weights_path, write_card
from .clip import POSITIONS, Vocabulary
from .pictures import SEEDS, training_set
from .run import Run
from .schedule import LATENT_SCALE
from .vae import is_encoder


def card_of(run: Run, batch: int, **more: object) -> dict:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "part": run.name,
        "first_seed": SEEDS[run.name],
        "steps": run.done,
        "batch": batch,
        "samples": run.done * batch,
        "seconds": round(run.seconds),
        "hardware": f"{name}, {torch.get_num_threads()} threads" if not torch.cuda.is_available() else name,
        "torch": torch.__version__,
        "last": run.log[-1] if run.log else {},
        **more,
    }


def rescale_latents(state: dict[str, Tensor], mean: Tensor, std: Tensor) -> dict[str, Tensor]:
    """Folds (z - mean) / std into quant_conv and its inverse into post_quant_conv. mean, std: (4,)."""
    state = dict(state)
    weight, bias = state["quant_conv.weight"].clone(), state["quant_conv.bias"].clone()
    weight[:4] /= std.view(-1, 1, 1, 1)
    bias[:4] = (bias[:4] - mean) / std
    bias[4:] -= 2 * std.log()
    after = state["post_quant_conv.weight"]
    state["post_quant_conv.bias"] = state["post_quant_conv.bias"] + (after[:, :, 0, 0] @ mean)
    state["post_quant_conv.weight"] = after * std.view(1, -1, 1, 1)
    return {**state, "quant_conv.weight": weight, "quant_conv.bias": bias}


@torch.no_grad()
def export_vae(run: Run, batch: int) -> None:
    """Latents come out with mean 0 and deviation 1 / LATENT_SCALE in every channel, as the stock SD1 format wants."""
    state = {key.removeprefix("net."): value.cpu() for key, value in run.averaged.weights.items()}
    net = build_autoencoder()
    net.load_state_dict(state)
    picked = training_set(list(range(SEEDS["vae"] - 256, SEEDS["vae"]))).pictures.image.permute(0, 3, 1, 2) * 2 - 1
    means = net.quant_conv(net.encoder(picked))[:, :4]
    mean, std = means.mean((0, 2, 3)), means.std((0, 2, 3))
    folded = rescale_latents(state, mean, std * LATENT_SCALE)
    save_part("vae", folded, card_of(run, batch, latent_std_before_folding=[round(v, 3) for v in std.tolist()]))


def export_decoder(run: Run, batch: int) -> None:
    """The autoencoder with its new decoder. The parts trained on its latents stay valid: their cards follow it."""
    old, card, before = load_part("vae"), read_card("vae"), file_hash(weights_path("vae"))
    state = {key.removeprefix("net."): value.cpu() for key, value in run.averaged.weights.items()}
    # The average of equal numbers rounds: what latents depend on is to stay bit for bit.
    state = {key: old[key] if is_encoder(key) else value for key, value in state.items()}
    save_part("vae", state, {**card, "decoder": card_of(run, batch)})
    _follow("vae", before, ("unet", "inpaint"))


def _follow(part: str, before: str, later_parts: tuple[str, ...]) -> None:
    """The cards of parts that were trained on that part's file of before now name the one that is there."""
    for later in later_parts:
        card = read_card(later)
        if card["trained_on"].get(part) == before:
            card["trained_on"][part] = file_hash(weights_path(part))
            write_card(later, card)


def warm_vae() -> dict[str, Tensor]:
    """The committed autoencoder with unit latents, as training wants them."""
    state = load_part("vae")
    unit = rescale_latents(state, torch.zeros(4), torch.full((4,), 1 / LATENT_SCALE))
    return {f"net.{key}": value for key, value in unit.items()}


def warm_unet() -> dict[str, Tensor]:
    state = load_part("unet", matching=False, whole=True)
    return {key if key.startswith(FOR_TRAINING) else f"net.{key}": value for key, value in state.items()}


def export_clip(run: Run, batch: int) -> None:
    """One file: both towers, the vocabulary's rows in use and their ids."""
    weights = {key: value.cpu() for key, value in run.averaged.weights.items()}
    kept = {key: value for key, value in weights.items() if key.startswith(("text.", "vision."))}
    positions = "text.text_model.embeddings.position_embedding.weight"
    # Nothing but padding ever stands beyond the trained positions.
    kept[positions] = torch.cat([kept[positions], kept[positions][-1:].expand(77 - POSITIONS, -1)])
    kept["token_ids"] = Vocabulary().ids.to(torch.int32)
    assert len(kept["token_ids"]) == len(kept[f"text.{TOKEN_TABLE}"]) <= VOCABULARY
    save_part("clip", kept, card_of(run, batch))


def export_vision(run: Run, batch: int) -> None:
    """CLIP with its new vision tower. Texts stay bit for bit; what stands on pictures must be trained again."""
    old, card, before = load_part("clip"), read_card("clip"), file_hash(weights_path("clip"))
    tower = {key: value.cpu() for key, value in run.averaged.weights.items() if key.startswith("vision.")}
    save_part("clip", {**old, **tower}, {**card, "vision": card_of(run, batch)})
    _follow("clip", before, ("unet",))


def export_judge(run: Run, batch: int) -> None:
    save_part("judge", run.averaged.weights, card_of(run, batch))


def export_unet(run: Run, batch: int) -> None:
    """The UNet, and under `shown.` what only training again needs."""
    state = {key.removeprefix("net."): value for key, value in run.averaged.weights.items()}
    save_part("unet", state, card_of(run, batch), trained_on=("vae", "clip"))


def export_inpaint(run: Run, batch: int) -> None:
    save_part("inpaint", dict(run.averaged.weights), card_of(run, batch), trained_on=("vae", "clip"))
