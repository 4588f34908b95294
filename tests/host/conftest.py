"""What tests of the real host share beside the models."""

import pytest


@pytest.fixture(scope="session")
def job(tiny, encode):
    """job(settings, model=, image=, mask=, ...) -> images, latent."""
    # Not at the top: this file may be read before the pack and its host are importable.
    from inlay.host.painting import paint

    from .painting_scene import FEW, box, scene

    positive, negative = encode("a red star on a beach"), encode("")

    def run(settings=FEW, model=None, image=None, mask=None, vae=tiny.vae, **more):
        image = scene() if image is None else image
        mask = box(*image.shape[1:3]) if mask is None else mask
        return paint(model or tiny.model, positive, negative, vae, image, mask, settings, **more)

    return run
