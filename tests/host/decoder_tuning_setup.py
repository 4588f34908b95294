"""What tests of the tuned decoder share: the VAE must come out of it as it went in."""

import torch


def weights(vae):
    return {name: value.clone() for name, value in vae.first_stage_model.state_dict().items()}


def assert_untouched(vae, before):
    after = vae.first_stage_model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
