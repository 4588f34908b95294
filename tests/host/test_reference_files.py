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
from inlay.host import reference_files
from inlay.host.demo_models import build_model, build_unet
from inlay.host.inpaint_channels import takes_masked_image
from inlay.host.reference_files import build_encoder, find_file, load_reference_files
from safetensors.torch import load_file, save_file
from torch.nn.functional import gelu, layer_norm

WIDTH, CONTEXT, BLOCKS = 32, 128, 5


@pytest.fixture(scope="module")
def original():
    """A state dict as the authors' checkpoint has it."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator) * 0.3

    weights = {"learnable_vector": draw(1, 1, CONTEXT), "proj_out.weight": draw(CONTEXT, WIDTH)}
    weights |= {"proj_out.bias": draw(CONTEXT)}
    weights |= {f"cond_stage_model.final_ln.{kind}": draw(WIDTH) for kind in ("weight", "bias")}
    shapes = {"attn.c_qkv": (3, 1), "attn.c_proj": (1, 1), "mlp.c_fc": (4, 1), "mlp.c_proj": (1, 4)}
    for number in range(BLOCKS):
        block = f"cond_stage_model.mapper.resblocks.{number}"
        for name, (out, inputs) in shapes.items():
            weights[f"{block}.{name}.weight"] = draw(out * WIDTH, inputs * WIDTH)
            weights[f"{block}.{name}.bias"] = draw(out * WIDTH)
        for norm in ("ln_1", "ln_2"):
            weights |= {f"{block}.{norm}.{kind}": draw(WIDTH) for kind in ("weight", "bias")}
    return weights


def reference_token(weights, pooled):
    """The authors' transformer over a sequence of one token, attention written out."""
    double = {key: value.double() for key, value in weights.items()}

    def norm(x, name):
        return layer_norm(x, (WIDTH,), double[f"{name}.weight"], double[f"{name}.bias"])

    def linear(x, name):
        return x @ double[f"{name}.weight"].T + double[f"{name}.bias"]

    x = pooled.double()[:, None]
    for number in range(BLOCKS):
        block = f"cond_stage_model.mapper.resblocks.{number}"
        q, k, v = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.c_qkv").split(WIDTH, -1)
        attended = (q @ k.transpose(1, 2) / WIDTH**0.5).softmax(-1) @ v
        x = x + linear(attended, f"{block}.attn.c_proj")
        x = x + linear(gelu(linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")), f"{block}.mlp.c_proj")
    return linear(norm(x, "cond_stage_model.final_ln"), "proj_out")


def as_diffusers(weights):
    """The same weights under diffusers' names."""
    names = {"ln_1": "norm1", "ln_2": "norm3", "attn.c_proj": "attn1.to_out.0"}
    names |= {"mlp.c_fc": "ff.net.0.proj", "mlp.c_proj": "ff.net.2"}
    renamed = {"uncond_vector": weights["learnable_vector"]}
    for key, value in weights.items():
        if key.startswith("proj_out"):
            renamed[key] = value
        elif "final_ln" in key:
            renamed[key.replace("cond_stage_model.final_ln", "final_layer_norm")] = value
        elif "resblocks" in key:
            _, _, _, number, *part, kind = key.split(".")
            if part == ["attn", "c_qkv"]:
                for name, own in zip("qkv", value.chunk(3), strict=True):
                    renamed[f"mapper.blocks.{number}.attn1.to_{name}.{kind}"] = own
            else:
                renamed[f"mapper.blocks.{number}.{names['.'.join(part)]}.{kind}"] = value
    return renamed


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
    from inlay.guidance.reference import ReferenceEncoder
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


def test_such_a_model_paints_and_trains(files, tiny, sample):
    model, encoder = load_reference_files(files, files, "auto")
    assert takes_masked_image(model)
    told = {"positive": [[encoder(torch.randn(1, WIDTH)), {}]], "negative": [[encoder.null, {}]]}
    with torch.no_grad():
        assert sample(model, **told).isfinite().all()


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
