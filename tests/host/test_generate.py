"""The helpers of evaluation: batches of texts, the host's own inpainting, replay."""

import torch
from inlay.host.generate import encode_texts, generate, inpaint_as_the_host, replay
from inlay.host.inversion import invert_latent

TEXTS = ["a red star on a beach", "", "a blue ring at night"]


def test_each_row_of_a_batch_gets_its_own_text(tiny, encode):
    batch = encode_texts(tiny.clip, TEXTS)
    for row, text in enumerate(TEXTS):
        assert torch.equal(batch[0][0][row], encode(text)[0][0][0])
        assert torch.equal(batch[0][1]["pooled_output"][row], encode(text)[0][1]["pooled_output"][0])


def test_a_row_does_not_depend_on_the_others_texts(tiny):
    negative = encode_texts(tiny.clip, [""])
    run = {"seed": 7, "count": 3, "steps": 2}
    first = generate(tiny.model, encode_texts(tiny.clip, TEXTS), negative, **run)
    other = generate(tiny.model, encode_texts(tiny.clip, [TEXTS[0], TEXTS[2], TEXTS[1]]), negative, **run)

    def apart(a, b):
        return ((a - b).norm() / a.norm()).item()

    rounding = apart(first[0], other[0])
    assert rounding < 5e-5 and apart(first[1], other[1]) > max(20 * rounding, 2e-4)
    assert first.shape == (3, 4, 16, 16)
    # The same noise and text alone.
    alone = generate(tiny.model, encode_texts(tiny.clip, TEXTS[:1]), negative, seed=7, count=1, steps=2)
    assert apart(first[:1], alone) < 5e-5


def test_the_hosts_inpainting_keeps_the_latent_outside_the_mask(tiny):
    image = torch.rand(2, 128, 128, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 128, 128)
    mask[0, 32:96, 32:96] = 1
    mask[1, :64] = 1
    positive, negative = encode_texts(tiny.clip, TEXTS[:2]), encode_texts(tiny.clip, [""])
    latent = inpaint_as_the_host(tiny.model, positive, negative, tiny.vae, image, mask, seed=1, steps=2)
    clean = tiny.vae.encode(image)
    cells = torch.nn.functional.max_pool2d(mask[:, None], 8) > 0
    assert torch.allclose(latent[~cells.expand_as(latent)], clean[~cells.expand_as(latent)], atol=1e-5)
    assert (latent - clean)[cells.expand_as(latent)].abs().mean() > 0.1


def test_replay_returns_to_the_start_of_a_fine_inversion(tiny):
    latent = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    empty = encode_texts(tiny.clip, [""])
    errors = []
    for steps in (4, 16):
        # Over the lower levels, where a random network is no worse than a trained one.
        path, end = invert_latent(tiny.model, latent, 128, 128, empty, sigmas=torch.linspace(0.05, 0.8, steps))
        errors.append((replay(tiny.model, empty, path, end) - latent).norm().item() / latent.norm().item())
    assert errors[1] < 0.5 * errors[0] and errors[1] < 0.2
