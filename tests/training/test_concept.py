"""The loop on a model small enough to differentiate by hand: updates, accumulation, resuming."""

import math

import pytest
import torch
from inlay.training.concept import ConceptTraining, draw_example, initial_vectors

G = torch.Generator().manual_seed(2)
START = {"clip_l": torch.randn(3, 5, generator=G), "clip_g": torch.randn(3, 7, generator=G)}
MIX = torch.randn(5, 7, generator=G)
TARGETS = torch.randn(200, 3, 7, generator=G)


def encode(vectors):
    return [torch.tanh(vectors["clip_l"] @ MIX) + vectors["clip_g"], None]


def loss_of(training):
    def losses(texts, parts):
        targets = TARGETS[[training.done * training.accumulation + part for part in parts]]
        return (texts[0] - targets).square().mean((1, 2))

    return losses


def trained(steps, training=None, accumulation=2):
    training = training or ConceptTraining(START, 1e-2, accumulation)
    for _ in range(steps):
        training.step(encode, loss_of(training))
    return training


def test_the_updates_are_adamws_on_the_mean_of_the_parts():
    """AdamW as its paper has it, float64, gradients from the parts' mean through the whole graph."""
    vectors = [START["clip_l"].double(), START["clip_g"].double()]
    m, v = [0.0, 0.0], [0.0, 0.0]
    for step in range(3):
        leaves = [value.clone().requires_grad_() for value in vectors]
        text = torch.tanh(leaves[0] @ MIX.double()) + leaves[1]
        loss = sum((text - TARGETS[2 * step + part].double()).square().mean() for part in range(2)) / 2
        for i, gradient in enumerate(torch.autograd.grad(loss, leaves)):
            m[i] = 0.9 * m[i] + 0.1 * gradient
            v[i] = 0.999 * v[i] + 0.001 * gradient**2
            rate = (m[i] / (1 - 0.9 ** (step + 1))) / ((v[i] / (1 - 0.999 ** (step + 1))) ** 0.5 + 1e-8)
            vectors[i] = vectors[i] * (1 - 1e-2 * 1e-2) - 1e-2 * rate
    ours = trained(3)
    assert ours.losses[-1] == pytest.approx(float(loss.detach()), rel=1e-5)
    for key, want in zip(("clip_l", "clip_g"), vectors, strict=True):
        assert torch.allclose(ours.vectors[key].double(), want, atol=1e-6)


def test_a_resumed_run_is_the_uninterrupted_one():
    whole = trained(6)
    half = trained(2)
    resumed = ConceptTraining(START, 1e-2, 2)
    resumed.load_state(half.state())
    assert resumed.done == 2
    trained(4, resumed)
    assert resumed.losses == whole.losses
    for key in START:
        assert torch.equal(resumed.vectors[key], whole.vectors[key])


@pytest.mark.parametrize("at_once", [2, 3, 5])
def test_parts_together_are_the_parts_one_by_one(at_once):
    asked = []
    single, grouped = (ConceptTraining(START, 1e-2, 5) for _ in range(2))
    for _ in range(2):
        single.step(encode, loss_of(single))
        grouped.step(encode, lambda texts, parts: asked.append(list(parts)) or loss_of(grouped)(texts, parts), at_once)
    assert sum(asked, []) == [*range(5)] * 2 and max(map(len, asked)) == at_once
    assert grouped.losses == pytest.approx(single.losses, rel=1e-5)
    for key in START:
        assert torch.allclose(grouped.vectors[key], single.vectors[key], atol=1e-6)


def test_the_text_is_encoded_once_a_step():
    calls = []

    def counted(vectors):
        calls.append(1)
        return encode(vectors)

    training = ConceptTraining(START, 1e-2, 4)
    training.step(counted, loss_of(training))
    assert len(calls) == 1


def test_the_loss_falls_and_the_start_is_left_alone():
    kept = {key: value.clone() for key, value in START.items()}
    training = ConceptTraining(START, 1e-2, 1)
    for _ in range(60):
        training.step(encode, lambda texts, _: (texts[0] - TARGETS[0]).square().mean())
    assert training.losses[-1] < 0.5 * training.losses[0]
    assert all(torch.equal(START[key], kept[key]) for key in START)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_no_learning_rate_is_refused(rate):
    with pytest.raises(ValueError, match="learning rate"):
        ConceptTraining(START, rate, 4)


BAD = {
    "loss": lambda texts, _: texts[0].sum()[None] * float("nan"),
    "gradient": lambda texts, _: texts[0].mean() * 1e37,
}


@pytest.mark.parametrize("what", BAD)
def test_an_odd_step_that_is_not_finite_is_left_out(what, caplog):
    training = trained(2)
    before = training.state()
    for _ in range(2):
        assert math.isnan(training.step(encode, BAD[what]))
    assert f"The {what} is not a number in step 4. Lower the learning rate" in caplog.text
    assert training.done == 4 and all(
        torch.equal(before[key], value) for key, value in training.state().items() if key != "losses"
    )
    trained(1, training)
    assert math.isfinite(training.losses[-1])
    training.require_learned()


@pytest.mark.parametrize("what", BAD)
def test_three_in_a_row_end_the_run_where_it_was_before_them(what):
    training = trained(1)
    before = training.state()
    training.step(encode, BAD[what])
    training.step(encode, BAD[what])
    with pytest.raises(ValueError, match=f"{what} is not a number in step 4"):
        training.step(encode, BAD[what])
    assert all(torch.equal(before[key], value) for key, value in training.state().items())


def test_a_run_of_which_nothing_came_is_an_error():
    training = ConceptTraining(START, 1e-2, 2, advice="Do something else.")
    training.step(encode, BAD["loss"])
    with pytest.raises(ValueError, match="not a number in any step. Do something else."):
        training.require_learned()


def test_examples_belong_to_seed_step_and_part_alone():
    shape = (4, 5, 6)
    one = draw_example(7, 3, 1, 4, 5, 1000, shape, True)
    again = draw_example(7, 3, 1, 4, 5, 1000, shape, True)
    assert (one.picture, one.flip, one.timestep) == (again.picture, again.flip, again.timestep)
    assert torch.equal(one.noise, again.noise)
    others = [draw_example(*key, 4, 5, 1000, shape, True) for key in [(8, 3, 1), (7, 4, 1), (7, 3, 2)]]
    assert all(not torch.equal(one.noise, other.noise) for other in others)
    many = [draw_example(0, step, 0, 1, 3, 1000, (1, 1, 1), True) for step in range(300)]
    assert {draw.picture for draw in many} == {0, 1, 2}
    assert 100 < sum(draw.flip for draw in many) < 200
    assert min(draw.timestep for draw in many) < 50 and max(draw.timestep for draw in many) > 950
    assert not any(draw_example(0, step, 0, 1, 3, 1000, (1, 1, 1), False).flip for step in range(20))


@pytest.mark.parametrize("parts, timesteps", [(4, 1000), (3, 1000)])
def test_the_parts_of_a_step_share_out_the_schedule(parts, timesteps):
    drawn = torch.tensor(
        [
            [draw_example(0, step, part, parts, 1, timesteps, (1, 1, 1), False).timestep for part in range(parts)]
            for step in range(200)
        ]
    )
    assert 0 <= drawn.min() and drawn.max() < timesteps
    assert (drawn.diff() > 0).all() and len(drawn[:, 0].unique()) > 100
    uniform = (timesteps - 1) / 2
    assert abs(float(drawn.float().mean()) - uniform) < 0.03 * timesteps
    # One by one they would deviate by timesteps / sqrt(12 parts).
    assert float(drawn.float().mean(1).std()) < 0.6 * timesteps / (12 * parts) ** 0.5


def test_the_start_is_the_word_spread_or_the_tables_statistics():
    table = torch.randn(500, 5, generator=G) * 0.02 + 1
    generator = torch.Generator().manual_seed(0)
    word = table[[3, 9]]
    spread = initial_vectors(table, 6, word, generator)
    assert torch.allclose(spread, word[[0, 0, 0, 1, 1, 1]], atol=6e-3)
    assert len(torch.unique(spread, dim=0)) == 6
    assert torch.equal(initial_vectors(table, 2, word, generator), word)
    drawn = initial_vectors(table, 400, None, generator)
    assert torch.allclose(drawn.mean(0), table.mean(0), atol=5e-3)
    assert torch.allclose(drawn.std(0), table.std(0), rtol=0.2)
