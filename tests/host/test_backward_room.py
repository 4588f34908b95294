import dataclasses

import pytest
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from inlay.host.contrast import MEMORY_FACTOR, with_backward
from inlay.host.gradient_guidance import Guidance, guide

FAST = Guidance("Fast", lambda denoised, *_: denoised.sum((1, 2, 3)), 0.1, None, "fast", 0.0, 1.0, ())
EXACT = dataclasses.replace(FAST, name="Exact", mode="exact")


def asked(model):
    """(rows, whole) that the host is told for 2 rows of latents."""
    wrappers = [one for kept in model.wrappers[WrappersMP.PREPARE_SAMPLING].values() for one in kept]
    told = []
    executor = WrapperExecutor.new_executor(lambda _, shape, conds, **options: told.append((shape, options)), wrappers)
    executor.execute(model, torch.Size((2, 4, 8, 8)), {}, model_options={}, force_full_load=False)
    ((rows, *shape), options), *_ = told
    assert shape == [4, 8, 8]
    return rows, options["force_full_load"]


@pytest.mark.parametrize(
    "guidances, rows, whole",
    [
        ([FAST], 6, False),
        ([FAST, FAST], 6, False),
        ([EXACT, EXACT], 12, True),
        ([EXACT, FAST], 12, True),
        ([FAST, EXACT], 12, True),
    ],
)
def test_guidances_share_one_forward_and_the_room_for_it(tiny, guidances, rows, whole):
    model = tiny.model
    for guidance in guidances:
        model = guide(model, guidance)
    assert asked(model) == (rows, whole)


def test_training_on_a_guided_model_asks_for_the_most(tiny):
    guided = guide(tiny.model, FAST)
    assert asked(with_backward(guided)) == (2 * MEMORY_FACTOR, True)
    assert asked(guided) == (6, False)
