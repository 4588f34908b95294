"""Words and pictures that meet, and a projection that was never loaded but holds another layer's weights."""

import copy
import logging

import pytest
import torch
from inlay.host import clip_probe
from inlay.host.clip_pairs import embed_text
from inlay.host.demo_world import load_demo_models
from inlay.host.ranking import score_pictures

PICTURES = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(name="trained", scope="module")
def fixture_trained():
    return load_demo_models("text")


def with_stale_memory(clip):
    """Their shape and their values are such as a projection has."""
    stale = copy.copy(clip)
    stale.cond_stage_model = copy.deepcopy(clip.cond_stage_model)
    transformer = stale.cond_stage_model.clip_l.transformer
    old = transformer.text_model.encoder.layers[0].self_attn.v_proj.weight.detach().clone()
    transformer.text_projection.weight = torch.nn.Parameter(old, requires_grad=False)
    return stale


def test_a_pair_that_was_trained_together_finds_every_colour(trained, caplog):
    caplog.set_level(logging.INFO)
    assert clip_probe.colours_found(trained.clip, trained.clip_vision) == 6
    score_pictures(PICTURES, trained.clip_vision, trained.clip, "a red star")
    assert "do not meet" not in caplog.text


def test_stale_memory_in_the_projections_place_is_told(trained, caplog):
    caplog.set_level(logging.INFO)
    stale = with_stale_memory(trained.clip)
    assert embed_text(stale, trained.clip_vision, "a red star").isfinite().all()
    assert clip_probe.colours_found(stale, trained.clip_vision) < 4
    score_pictures(PICTURES, trained.clip_vision, stale, "a red star")
    assert "words and pictures do not meet in it. An SD1.x checkpoint" in caplog.text


def test_each_pair_is_looked_at_once(trained, monkeypatch):
    looks = []
    monkeypatch.setattr(clip_probe, "colours_found", lambda *pair: looks.append(pair) or 6)
    clip = with_stale_memory(trained.clip)
    for _ in range(3):
        clip_probe.tell_if_apart(clip, trained.clip_vision)
    clip_probe.tell_if_apart(with_stale_memory(trained.clip), trained.clip_vision)
    assert len(looks) == 2
