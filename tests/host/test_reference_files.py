"""Paint-by-Example's files: the mapper against its own block in float64, both formats, channel order, refusals.

The original weights are not at hand; names and layout are tested on random ones.
"""

import os
import re
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import comfy.ops
import comfy.sd
import comfy.utils
import folder_paths
import pytest
import torch
from inlay.attention.boxes import box_mask
from inlay.guidance.reference import ReferenceEncoder
from inlay.host import reference_files
from inlay.host.demo_models import build_model, build_unet
from inlay.host.inpaint_channels import inpaint_channels, takes_masked_image
from inlay.host.lora_files import CHANNELS
from inlay.host.reference_files import build_encoder, find_file, load_reference_files
from inlay.host.subject_telling import Teller
from inlay.host.subject_training import Photos, train_subject
from inlay.training.subject_settings import SubjectSettings
from safetensors.torch import load_file, save_file

from .reference_setup import CONTEXT, WIDTH, as_diffusers, original_weights, reference_token


@pytest.fixture(scope="module")
def original():
    return original_weights()


def test_the_mapper_is_the_authors_block_in_both_formats(original):
    pooled = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))
    wanted = reference_token(original, pooled)
    for weights in (original, as_diffusers(original)):
        encoder = build_encoder(weights)
        assert encoder.width == WIDTH and torch.equal(encoder.null, original["learnable_vector"])
        token = encoder(pooled)
        assert token.shape == (3, 1, CONTEXT)
        assert (token - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.fixture
def files(original, monkeypatch):
    """A checkpoint of both parts in the host's folder; the tiny UNet stands in for SD1.4's, which the host detects."""
    folder = folder_paths.get_folder_paths("checkpoints")[0]
    os.makedirs(folder, exist_ok=True)
    unet = build_unet(9, seed=3).state_dict()
    whole = {**original, **{f"model.diffusion_model.{key}": value for key, value in unet.items()}}
    save_file(whole, os.path.join(folder, "pbe.safetensors"))
    open(os.path.join(folder, "pbe.ckpt"), "wb").close()

    def detect(weights, **_):
        found = {
            key.removeprefix("model.diffusion_model."): weights[key] for key in weights if "diffusion_model" in key
        }
        return build_model(found) if found else None

    monkeypatch.setattr(comfy.sd, "load_diffusion_model_state_dict", detect)
    return "checkpoints/pbe.safetensors"


@pytest.mark.parametrize("order", ["auto", "host"])
def test_the_model_is_given_its_channels_in_its_own_order(files, order, tiny):
    model, encoder = load_reference_files(files, files, order)
    latent, mask = torch.randn(1, 4, 16, 18), (torch.rand(1, 1, 16, 18) > 0.5).float()
    given = model.model.concat_cond(
        noise=torch.zeros(1, 4, 16, 18), device="cpu", concat_mask=mask, concat_latent_image=latent
    )
    shown = model.model.process_latent_in(latent)
    wanted = [shown, 1 - mask] if order == "auto" else [mask, shown]
    assert torch.equal(given, torch.cat(wanted, 1))
    again = model.cached_patcher_init[0](*model.cached_patcher_init[1], disable_dynamic=True)
    assert again.model.concat_keys == model.model.concat_keys
    assert encoder.null.shape[-1] == CONTEXT


def test_with_a_projection_of_our_own_auto_is_the_order_it_was_trained_in(files):
    from inlay.host.lora_files import Lora, base_metadata, save_lora
    from inlay.host.subject_projection import projection_tensors

    projection = torch.nn.Sequential(torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, CONTEXT))
    ours = ReferenceEncoder(projection, torch.randn(1, 1, CONTEXT), WIDTH).requires_grad_(False)
    save_lora(Lora(projection_tensors(ours), {}), "own-projection")
    assert "loras/own-projection.safetensors" in reference_files.reference_files(own=True)
    assert "loras/own-projection.safetensors" not in reference_files.reference_files()
    unet = {f"model.diffusion_model.{key}": value for key, value in build_unet(9, seed=3).state_dict().items()}
    folder = folder_paths.get_folder_paths("checkpoints")[0]
    save_file(unet, f"{folder}/unet.safetensors")
    unet_file, own_file = "checkpoints/unet.safetensors", "loras/own-projection.safetensors"
    model, encoder = load_reference_files(unet_file, own_file, "auto")
    assert model.model.concat_keys == ("mask", "masked_image")
    # Paint-by-Example's own checkpoint is known by its learned vector, and its bare UNet by what ours was trained on.
    reversed_keys = load_reference_files(files, own_file, "auto")[0].model.concat_keys
    assert reversed_keys == ("masked_image", "mask_inverted")
    told = base_metadata(load_reference_files(files, files, "auto")[0])
    save_lora(Lora(projection_tensors(ours), told), "own-projection")
    assert load_reference_files(unet_file, own_file, "auto")[0].model.concat_keys == reversed_keys
    pooled = torch.randn(2, WIDTH)
    assert torch.equal(encoder(pooled), ours(pooled))


@pytest.mark.parametrize(
    "holds",
    [
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
        "cond_stage_model.model.ln_final.weight",
        "conditioner.embedders.1.model.ln_final.weight",
    ],
)
def test_auto_takes_a_checkpoint_with_a_text_encoder_for_the_hosts(files, original, holds):
    folder = folder_paths.get_folder_paths("checkpoints")[0]
    unet = {f"model.diffusion_model.{key}": value for key, value in build_unet(9, seed=3).state_dict().items()}
    save_file(unet, f"{folder}/bare.safetensors")
    save_file({**unet, holds: torch.ones(4)}, f"{folder}/text.safetensors")
    save_file({**unet, holds: torch.ones(4), **original}, f"{folder}/both.safetensors")
    reversed_keys = ("masked_image", "mask_inverted")
    # A UNet alone may be diffusers' of Paint-by-Example.
    for model, wanted in (("bare", reversed_keys), ("text", ("mask", "masked_image")), ("both", reversed_keys)):
        loaded, _ = load_reference_files(f"checkpoints/{model}.safetensors", files, "auto")
        assert loaded.model.concat_keys == wanted
    forced, _ = load_reference_files("checkpoints/text.safetensors", files, "paint-by-example")
    assert forced.model.concat_keys == reversed_keys


def test_such_a_model_paints_and_trains(files, tiny, sample):
    model, encoder = load_reference_files(files, files, "auto")
    assert takes_masked_image(model)
    told = {"positive": [[encoder(torch.randn(1, WIDTH)), {}]], "negative": [[encoder.null, {}]]}
    with torch.no_grad():
        assert sample(model, **told).isfinite().all()
    seen, watched = [], model.clone()

    def keep(apply, given):
        seen.append(given["c"]["c_concat"].detach())
        return apply(given["input"], given["timestep"], **given["c"])

    watched.set_model_unet_function_wrapper(keep)
    projection = ReferenceEncoder(torch.nn.Linear(128, CONTEXT), torch.randn(1, 1, CONTEXT), 128).requires_grad_(False)
    image, mask = torch.rand(1, 64, 64, 3), box_mask([{"x": 8, "y": 16, "width": 40, "height": 24}], 64, 64)[None]
    # One view, which is the whole photo.
    recipe = {"preset": "custom", "rank": 2, "steps": 1, "batch": 2, "resolution": 64, "learning_rate": 1e-3}
    settings = SubjectSettings(**recipe, mask_augmentation="none", reference_augmentation=False)
    teller, photos = Teller(projection, tiny.clip_vision), Photos([image], [mask])
    trained = train_subject(watched, tiny.vae, photos, "by-example", settings, teller, "overwrite")
    assert trained.lora.metadata[CHANNELS] == "masked_image mask_inverted"
    channels = inpaint_channels(tiny.vae, image, mask)
    shown = model.model.process_latent_in(channels["concat_latent_image"])
    wanted = torch.cat([shown, 1 - channels["concat_mask"].view(1, 1, 8, 8)], 1)
    assert wanted[:, 4].unique().tolist() == [0, 1] and wanted[0, 4, 3, 3] == 0
    assert [len(given) for given in seen] == [1, 2, 2]
    assert all(torch.allclose(row, wanted[0], atol=1e-5) for given in seen for row in given)


def test_the_hosts_own_loader_takes_such_a_file(original, tmp_path):
    """SD1.5's widths with one level of its four, in half precision, beside a mapper of the same file."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    config = {"model_channels": 320, "out_channels": 4, "channel_mult": [1], "num_res_blocks": [1], "num_heads": 8}
    config |= {"transformer_depth": [1], "transformer_depth_output": [1, 1], "transformer_depth_middle": 1}
    config |= {"use_spatial_transformer": True, "context_dim": 768, "legacy": False, "image_size": 32}
    net = UNetModel(
        in_channels=9, **config, dtype=torch.float16, device="cpu", operations=comfy.ops.disable_weight_init
    )
    unet = {f"model.diffusion_model.{key}": torch.zeros_like(value) for key, value in net.state_dict().items()}
    first = unet["model.diffusion_model.input_blocks.0.0.weight"]
    first += torch.randn(first.shape, generator=torch.Generator().manual_seed(0)).half()
    save_file({**unet, **original}, tmp_path / "pbe.safetensors")
    model = reference_files.load_reference_model(str(tmp_path / "pbe.safetensors"), "paint-by-example")
    assert type(model.model.model_config).__name__ == "SD15"
    assert takes_masked_image(model) and model.model.concat_keys == ("masked_image", "mask_inverted")
    assert torch.equal(model.model.diffusion_model.input_blocks[0][0].weight.float(), first.float())
    again = model.cached_patcher_init[0](*model.cached_patcher_init[1], disable_dynamic=True)
    assert again.model.concat_keys == model.model.concat_keys


def test_the_help_pages_way_converts_what_lightning_saved(original, tmp_path, monkeypatch):
    """Such a file holds the trainer's callbacks by their classes."""
    saved = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    saved.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": saved.__name__})
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", saved.__name__):
        monkeypatch.setitem(sys.modules, name, saved)
    shared = {**original, "tied": original["proj_out.bias"][:2]}
    callbacks = {saved.ModelCheckpoint: {"best_model_score": torch.tensor(1.0)}}
    torch.save({"epoch": 3, "callbacks": callbacks, "state_dict": shared}, tmp_path / "pbe.ckpt")
    page = Path(__file__).parents[2] / "web" / "docs" / "InlayLoadReferenceModel.md"
    block = re.search(r"(?:^    .*\n)+", page.read_text().partition("A `.ckpt` is refused")[2], re.MULTILINE)[0]
    way = {**os.environ, "PYTHONPATH": str(Path(comfy.utils.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", textwrap.dedent(block)], cwd=tmp_path, env=way, check=True)
    converted = load_file(tmp_path / "pbe.safetensors")
    assert converted.keys() == shared.keys() and torch.equal(converted["tied"], shared["tied"])
    assert build_encoder(converted).width == WIDTH


def test_what_is_no_such_file_is_refused(files, tmp_path):
    with pytest.raises(ValueError, match="can run code.*safetensors.torch.save_file"):
        find_file("checkpoints/pbe.ckpt")
    for name in ("checkpoints/none.safetensors", "../pbe.safetensors", "vae/pbe.safetensors"):
        with pytest.raises(ValueError, match="There is no file"):
            find_file(name)
    with pytest.raises(ValueError, match="no reference mapper"):
        build_encoder({"some.weight": torch.ones(1)})
    save_file({"some.weight": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no UNet with 9 channels"):
        reference_files.load_reference_model(str(tmp_path / "other.safetensors"), "host")
