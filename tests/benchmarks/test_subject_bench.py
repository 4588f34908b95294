"""The bench `subject` from end to end on the tiny model."""

import inlay.host.demo_models as build
import pytest
import torch
from inlay.benchmarks import subject
from inlay.host import stock_training


def tiny_unet(depth=None, dtype=None):
    return build.build_model(build.build_unet(4, seed=1).state_dict())


def test_rows_time_steps_of_both_trainers(monkeypatch):
    monkeypatch.setattr(subject, "sd15", tiny_unet)
    monkeypatch.setattr(subject, "TEXT_WIDTH", 128)
    monkeypatch.setattr(subject, "RANK", 2)
    monkeypatch.setattr(subject, "PAIRS", 1)
    rows = [row for _, row in zip(range(1), subject.run(subject.Scale(8, None, torch.float32, 3)), strict=False)]
    assert [row.name for row in rows] == ["lora-step"]
    assert all(row.ours_s > 0 and row.reference_s > 0 and row.ratio > 0 for row in rows)


def test_both_train_the_same_net_for_as_many_steps(monkeypatch):
    model, scale = tiny_unet(), subject.Scale(8, None, torch.float32, 3)
    before = {key: value.clone() for key, value in model.model.state_dict().items()}
    text = [subject.conditioning(128, seed=seed)[0] for seed in (1, 2)]
    latents = torch.randn(2, 4, 8, 8)
    monkeypatch.setattr(subject, "RANK", 2)
    ours = subject.train_ours(latents, text, scale, 2, False, "attention", model)
    theirs = stock_training.train_as_the_host(model, latents, text, 3, 2, 2, 1e-4, "fp32", False)
    assert len(ours) == len(theirs) == 3 and all(loss > 0 for loss in [*ours, *theirs])
    assert all(torch.equal(before[key], value) for key, value in model.model.state_dict().items())


def test_the_time_of_a_step_is_that_between_forwards():
    import time

    def train(model):
        def forward(seconds):
            wrapper = model.model_options["model_function_wrapper"]
            wrapper(lambda *args, **kwargs: None, {"input": None, "timestep": None, "c": {}})
            time.sleep(seconds)

        # Ours goes forward twice before its first step, the second time without a gradient.
        forward(0.2)
        with torch.no_grad():
            forward(0.2)
        forward(0.02)
        forward(0)

    assert subject.step_seconds(tiny_unet(), train) == pytest.approx(0.02, rel=0.8)
