"""Captions that hold tokens projected from a picture."""

import pytest
import torch
from inlay.demo.training.parts import Parts
from inlay.demo.training.shown import PLACEHOLDER, TOKENS, Telling, projection
from inlay.host.demo_models import token_ids


@pytest.fixture(scope="module")
def telling():
    parts = Parts("cpu")
    return parts, Telling(parts)


def test_tokens_of_no_spread_are_the_word_thing(telling):
    parts, tower = telling
    ids = token_ids([f"a photo of a {' '.join([PLACEHOLDER] * TOKENS)} on a beach"])
    told = tower.states(ids, torch.zeros(1, TOKENS * 128))
    words = parts.text_states([f"a photo of a {' '.join(['thing'] * TOKENS)} on a beach"])
    assert torch.allclose(told, words, atol=0.02)


def test_each_row_is_told_its_own_tokens_and_hands_gradients_back(telling):
    tower = telling[1]
    ids = token_ids(
        [f"a {' '.join([PLACEHOLDER] * TOKENS)}", f"a photo of a {' '.join([PLACEHOLDER] * TOKENS)} in snow"]
    )
    torch.manual_seed(0)
    pooled = torch.randn(2, 128)
    net = projection()
    both = tower.states(ids, net(pooled))
    alone = tower.states(ids[1:], net(pooled[1:]))
    assert torch.allclose(both[1:], alone, atol=1e-5)
    assert not torch.allclose(alone, tower.states(ids[1:], net(pooled[:1])), atol=1e-2)
    both.square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())
