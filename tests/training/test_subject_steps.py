"""A subject's loss against the network's own terms in float64, its draws, and its state."""

import pytest
import torch
from inlay.training.subject import SubjectTraining, batch_loss, draw_batch, draw_rows, noise_losses
from inlay.training.subject_settings import SubjectSettings


@pytest.fixture
def noised():
    generator = torch.Generator().manual_seed(0)
    clean, noise, error = (torch.randn(3, 4, 6, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    sigma = torch.tensor([0.03, 1.0, 14.6], dtype=torch.float64)
    return clean, noise, error, sigma


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_loss_is_that_of_what_the_network_predicts(noised, prediction):
    clean, noise, error, sigma = noised
    alpha_bar = (1 / (1 + sigma**2)).view(-1, 1, 1, 1)
    z = alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise
    if prediction == "eps":
        truth, predicted = noise, noise + error
        denoised = (z - (1 - alpha_bar).sqrt() * predicted) / alpha_bar.sqrt()
    else:
        truth = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * clean
        predicted = truth + error
        denoised = alpha_bar.sqrt() * z - (1 - alpha_bar).sqrt() * predicted
    wanted = (predicted - truth).square().mean((1, 2, 3))
    found = noise_losses(denoised, clean, sigma, prediction)
    assert (found - wanted).abs().max() < 1e-5 * wanted.max()


def test_weights_choose_where_the_loss_counts(noised):
    clean, _, error, sigma = noised
    weights = torch.zeros(3, 1, 6, 5, dtype=torch.float64)
    weights[:, :, 2:4, 1:3] = 1
    found = noise_losses(clean + sigma.view(-1, 1, 1, 1) * error, clean, sigma, "eps", weights)
    assert torch.allclose(found, error[:, :, 2:4, 1:3].square().mean((1, 2, 3)), rtol=1e-5)


def test_the_class_counts_by_its_weight():
    losses = torch.tensor([1.0, 3.0, 10.0, 20.0])
    assert batch_loss(losses, 2, 0.5) == 2 + 0.5 * 15
    assert batch_loss(losses, 4, 0.5) == losses.mean()


def test_a_draw_depends_on_the_seed_the_step_and_the_part_only():
    groups = [torch.tensor([3, 4, 5]), torch.tensor([8])]

    def draw(*key):
        return draw_batch(*key, groups, 2, 1000, (4, 6, 5), 0.5)

    first, again = draw(0, 1, 2), draw(0, 1, 2)
    assert torch.equal(first.noise, again.noise) and torch.equal(first.timesteps, again.timesteps)
    for other in (draw(1, 1, 2), draw(0, 2, 2), draw(0, 1, 3)):
        assert not torch.equal(first.noise, other.noise)
    assert set(first.rows[:2].tolist()) <= {3, 4, 5} and first.rows[2:].tolist() == [8, 8]
    silent = torch.cat([draw_batch(0, step, 0, groups, 50, 1000, (1, 1, 1), 0.2).silent for step in range(20)])
    assert abs(silent.float().mean() - 0.2) < 0.04
    levels = torch.cat([draw_batch(0, step, 0, groups, 50, 1000, (1, 1, 1), 0.2).timesteps for step in range(20)])
    assert levels.min() < 20 and levels.max() > 979


def train(training, steps):
    truth = torch.tensor([[1.0, -2.0]])

    def loss(part):
        return ((training.parameters["w"] - truth * (1 + training.done + part)) ** 2).sum()

    for _ in range(steps):
        training.step(loss)


def test_a_state_goes_on_bit_for_bit():
    def fresh():
        return SubjectTraining({"w": torch.nn.Parameter(torch.zeros(1, 2))}, 0.1, 2)

    whole, cut, resumed = fresh(), fresh(), fresh()
    train(whole, 6)
    train(cut, 3)
    resumed.load_state(cut.state())
    train(resumed, 3)
    assert torch.equal(resumed.parameters["w"], whole.parameters["w"]) and resumed.losses == whole.losses


def test_a_step_is_adamw_on_the_mean_of_its_parts():
    ours = SubjectTraining({"w": torch.nn.Parameter(torch.ones(1, 2))}, 0.1, 2)
    train(ours, 1)
    weight = torch.nn.Parameter(torch.ones(1, 2))
    plain = torch.optim.AdamW([weight], lr=0.1)
    truth = torch.tensor([[1.0, -2.0]])
    (((weight - truth) ** 2).sum() / 2 + ((weight - 2 * truth) ** 2).sum() / 2).backward()
    plain.step()
    assert torch.allclose(ours.parameters["w"], weight, atol=1e-7)


def test_numbers_that_are_none_end_the_run():
    training = SubjectTraining({"w": torch.nn.Parameter(torch.ones(1))}, 0.1, 1)
    with pytest.raises(ValueError, match="not a number in step 1"):
        training.step(lambda part: training.parameters["w"].sum() * float("inf"))
    with pytest.raises(ValueError, match="learning rate is 0"):
        SubjectTraining({"w": torch.nn.Parameter(torch.ones(1))}, 0.0, 1)


def test_presets_replace_what_they_name():
    paper = SubjectSettings(preset="paper", rank=4, batch=1).resolved()
    assert (paper.learning_rate, paper.batch, paper.steps, paper.alpha) == (3e-5, 16, 1000, 4.0)
    own = SubjectSettings(preset="custom", steps=7, alpha=2.0).resolved()
    assert (own.steps, own.alpha) == (7, 2.0) and own.resolved() == own


def test_epochs_take_the_place_of_steps():
    chosen = SubjectSettings(preset="paper", epochs=40, repeats=100).resolved(photos=4)
    assert (chosen.steps, chosen.epochs) == (1000, 0)
    assert chosen.resolved(photos=9) == chosen
    assert SubjectSettings(preset="custom", epochs=1, repeats=1, batch=2, accumulation=2).resolved(5).steps == 2


def test_rows_known_ahead_are_those_that_are_drawn():
    groups = [torch.arange(7), torch.arange(7, 9)]
    for step, part in [(0, 0), (3, 1)]:
        draw = draw_batch(5, step, part, groups, 3, 1000, (4, 8, 8), 0.2)
        assert torch.equal(draw.rows, draw_rows(5, step, part, groups, 3))
