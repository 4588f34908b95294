"""Training runs resume exactly, and start again when what they stand on has changed; exports keep what was trained."""

import shutil

import pytest
import torch
from inlay.demo import weights
from inlay.demo.tasks import reference_scenes
from inlay.demo.training import train_part, vision
from inlay.demo.training.export import rescale_latents
from inlay.demo.training.pictures import SEEDS
from inlay.demo.training.run import Run
from inlay.demo.training.schedule import LATENT_SCALE, alpha_bars, min_snr_weight, stratified_timesteps
from inlay.demo.training.vae import is_encoder
from inlay.demo.vocabulary import held_out
from inlay.host.demo_models import build_autoencoder
from torch import nn


def trained(folder, steps, stop=None, basis="a"):
    torch.manual_seed(0)
    run = Run("part", folder, nn.Linear(4, 2), steps, 1e-2, basis=basis)

    def step(index):
        if index == stop:
            run.save()
            raise KeyboardInterrupt
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(index))
        loss = (run.module(inputs) - inputs[:, :2]).square().mean()
        return loss, {"loss": loss.item()}

    try:
        run.train(step, report_every=5)
    except KeyboardInterrupt:
        pass
    return run


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path):
    whole = trained(tmp_path / "whole", 20)
    trained(tmp_path / "parts", 20, stop=7)
    resumed = trained(tmp_path / "parts", 20)
    assert resumed.done == 20
    for name, value in whole.averaged.weights.items():
        assert torch.equal(value, resumed.averaged.weights[name])
    # Figures are means over the steps that this process took.
    assert whole.log[-1]["loss"] == resumed.log[-1]["loss"] and resumed.log[0]["loss"] > 0


def test_a_checkpoint_of_another_basis_lends_only_its_weights(tmp_path):
    first = trained(tmp_path, 10)
    torch.manual_seed(1)
    again = Run("part", tmp_path, nn.Linear(4, 2), 10, 1e-2, basis="b")
    assert again.done == 0 and torch.equal(again.module.weight, first.module.weight)


def test_folding_changes_the_latents_and_not_the_pictures():
    net = build_autoencoder(seed=3)
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    mean, std = torch.tensor([0.5, -1.0, 2.0, 0.0]), torch.tensor([0.5, 2.0, 1.0, 3.0])
    with torch.no_grad():
        moments = net.quant_conv(net.encoder(pixels))
        picture = net.decoder(net.post_quant_conv(moments[:, :4]))
        net.load_state_dict(rescale_latents(net.state_dict(), mean, std))
        folded = net.quant_conv(net.encoder(pixels))
        again = net.decoder(net.post_quant_conv(folded[:, :4]))
    shape = (1, 4, 1, 1)
    assert torch.allclose(folded[:, :4], (moments[:, :4] - mean.view(shape)) / std.view(shape), atol=1e-5)
    assert torch.allclose(folded[:, 4:], moments[:, 4:] - 2 * std.log().view(shape), atol=1e-5)
    assert torch.allclose(again, picture, atol=1e-4)


def test_the_schedule_is_the_host_s(tiny):
    sigmas = tiny.model.get_model_object("model_sampling").sigmas
    assert torch.allclose(((1 - alpha_bars()) / alpha_bars()).sqrt(), sigmas.cpu(), rtol=1e-4)
    assert tiny.model.model.latent_format.scale_factor == LATENT_SCALE
    alphas = torch.tensor([0.5, 0.99])  # SNR 1 and 99
    assert torch.allclose(min_snr_weight(alphas), torch.tensor([1.0, 5 / 99]))


def test_timesteps_drawn_by_weight_keep_the_expected_loss():
    wanted, errors = min_snr_weight(alpha_bars()), torch.linspace(2, 1, 1000)
    timesteps, weights = stratified_timesteps(20_000, torch.Generator().manual_seed(0), wanted)
    assert torch.isclose((weights * errors[timesteps]).mean(), (wanted * errors).mean(), rtol=1e-3)
    assert weights.std() < wanted.std() / 2
    even, ones = stratified_timesteps(10, torch.Generator().manual_seed(0), torch.ones(1000))
    assert torch.equal(even.sort().values // 100, torch.arange(10))
    assert torch.allclose(ones, torch.ones(10))


def test_training_the_decoder_alone_keeps_latents_and_what_stands_on_them(tmp_path, monkeypatch):
    folder = shutil.copytree(weights.FOLDER, tmp_path / "weights")
    monkeypatch.setattr(weights, "FOLDER", folder)
    monkeypatch.setattr("inlay.demo.training.CHECKPOINTS", tmp_path)
    monkeypatch.setattr("inlay.demo.training.vae.BATCH", 2)
    before = weights.load_part("vae")
    train_part("decoder", 2, None, False)
    after = weights.load_part("vae")
    same = {name for name, value in before.items() if torch.equal(value, after[name])}
    assert same >= {name for name in before if is_encoder(name)}
    assert "decoder.conv_in.weight" not in same and "post_quant_conv.weight" not in same
    assert weights.read_card("vae")["decoder"]["steps"] == 2
    for part in ("unet", "inpaint"):
        assert weights.load_part(part)


def test_training_the_vision_tower_alone_keeps_texts_and_what_stands_on_them(tmp_path, monkeypatch):
    folder = shutil.copytree(weights.FOLDER, tmp_path / "weights")
    monkeypatch.setattr(weights, "FOLDER", folder)
    monkeypatch.setattr("inlay.demo.training.CHECKPOINTS", tmp_path)
    monkeypatch.setattr(vision, "BATCH", 4)
    before, texts = weights.load_part("clip"), weights.tower_hash("text")
    train_part("vision", 2, None, False)
    after = weights.load_part("clip")
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("vision.") for name in changed)
    assert weights.tower_hash("text") == texts and weights.read_card("clip")["vision"]["steps"] == 2
    assert weights.load_part("unet")
    with pytest.raises(weights.WeightsError, match="'inpaint' was trained on another 'clip'"):
        weights.load_part("inpaint")


def test_no_thing_is_shown_in_a_style_that_it_is_kept_from():
    seeds = list(range(SEEDS["vision"], SEEDS["vision"] + 64))
    drawn = vision.Drawn(seeds, "cpu")
    first = (drawn.scenes.shape[:, 0], drawn.scenes.colour[:, 0], drawn.scenes.surface[:, 0])
    named = first[0] >= 0
    assert not (named & held_out(drawn.scenes.style, *first)).any()
    elsewhere = reference_scenes(drawn.scenes, seeds)
    assert torch.equal(drawn.learnable, ~(named & held_out(elsewhere.style, *first)))
    assert 0 < (~drawn.learnable).sum() < 32


def test_equal_views_are_told_from_those_of_other_things():
    views = torch.eye(5)
    loss, top = vision.same_thing(views, views)
    assert top == 1 and loss < vision.same_thing(views, views.roll(1, 0))[0]
    expected = -torch.log(torch.tensor(10.0).exp() / (torch.tensor(10.0).exp() + 4))
    assert torch.allclose(loss, expected, rtol=5e-3)
