"""SECR against its formula with attention probabilities materialised, on a tiny UNet of the real host."""

import math
from functools import partial

import inlay.host.concept_region_patch as patch
import pytest
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from inlay.attention.concept_region import cell_mask, mask_boxes, single_boxes
from inlay.host.concept_region_patch import concept_region, on_latent

SIZE = (128, 144)
BOX = {"x": 37, "y": 20, "width": 61, "height": 70}
OTHER = {"x": 70, "y": 60, "width": 60, "height": 60}
WHOLE = {"x": 0, "y": 0, "width": 144, "height": 128}


@pytest.fixture(scope="module")
def draw(sample):
    return partial(sample, steps=2)


@pytest.fixture(scope="module")
def phrase(encode):
    return lambda text: encode(text)[0][0]


def inside_grid(box, height, width):
    """floor and ceil of the relative corners, cell by cell: a cell belongs if the box overlaps it."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    for row in range(height):
        for column in range(width):
            top, bottom = row * SIZE[0] / height, (row + 1) * SIZE[0] / height
            left, right = column * SIZE[1] / width, (column + 1) * SIZE[1] / width
            mask[row, column] = (
                top < box["y"] + box["height"]
                and bottom > box["y"]
                and left < box["x"] + box["width"]
                and right > box["x"]
            )
    return mask.flatten()


@pytest.mark.parametrize("side", [65, 100, 127])
def test_sizes_that_are_padded_or_cropped_to_whole_cells_are_not_stretched(side):
    for start, length in ((0, 8), (side // 2, 9), (side - 8, 8), (37, 27)):
        box, stop = {"x": 0, "y": start, "width": 32, "height": length}, min(side, start + length)
        padded, latent = -(-side // 8), (-(-side // 8), 4)
        (mask,) = cell_mask(*on_latent([box], (side, 32), latent), latent, latent, (0, 0, *latent))
        assert mask[:, 0].nonzero()[:, 0].tolist() == list(range(start // 8, min(padded, -(-stop // 8))))
        # The host's VAE Encode cuts as much from both ends.
        cut, cells = side % 8 // 2, side // 8
        (mask,) = cell_mask(*on_latent([box], (side, 32), (cells, 4)), (cells, 4), (cells, 4), (0, 0, cells, 4))
        kept = range(max(0, start - cut) // 8, min(cells, -(-(stop - cut) // 8)))
        assert mask[:, 0].nonzero()[:, 0].tolist() == list(kept)


def test_a_region_drawn_at_another_scale_is_stretched():
    assert on_latent([BOX], SIZE, (32, 36)) == ([BOX], SIZE)


def attention(layer, queries, context):
    """softmax(Q K^T / sqrt(d)) V before the output layer, the probabilities in full."""
    split = lambda x: x.unflatten(-1, (layer.heads, -1)).transpose(1, 2)  # noqa: E731
    q, k, v = split(layer.to_q(queries)), split(layer.to_k(context)), split(layer.to_v(context))
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def formula(regions, raw, conditional=False, positive=0):
    """A block's forward from eq. 12-13. regions: [(box, one context per row of a condition)]. conditional: only the
    positive's rows have them; positive: which of the guider's lists it is.
    """

    def forward(self, x, context, transformer_options):
        _, _, height, width = transformer_options["activations_shape"]
        normed = self.norm1(x)
        x = x + self.attn1.to_out(attention(self.attn1, normed, normed))
        normed = self.norm2(x)
        plain = attention(self.attn2, normed, context)
        mixed = normed.clone() if raw else plain.clone()
        for box, contexts in regions:
            inside = inside_grid(box, height, width)
            rows = contexts.repeat(len(x) // len(contexts), 1, 1)
            mixed[:, inside] = attention(self.attn2, normed[:, inside], rows)
        if conditional:
            indices = transformer_options["cond_or_uncond"]
            told = torch.tensor([index == positive for index in indices]).repeat_interleave(len(x) // len(indices))
            mixed = torch.where(told[:, None, None], mixed, plain)
        x = x + self.attn2.to_out(mixed)
        return x + self.ff(self.norm3(x))

    return forward


def same(ours, want):
    return (ours - want).norm() < 2e-5 * want.norm()


@pytest.mark.parametrize("outside", ["ca", "raw"])
def test_the_formula(draw, tiny, phrase, monkeypatch, outside):
    concept = phrase("a blue robot")
    ours = draw(concept_region(tiny.model, [concept], [BOX], SIZE, outside))
    plain = draw(tiny.model)
    monkeypatch.setattr(BasicTransformerBlock, "forward", formula([(BOX, concept)], outside == "raw"))
    assert same(ours, draw(tiny.model))
    assert (ours - plain).norm() > 0.01 * plain.norm()


@pytest.mark.parametrize("outside", ["ca", "raw"])
def test_the_negative_can_be_left_alone(draw, tiny, phrase, monkeypatch, outside):
    concept = phrase("a blue robot")
    ours = draw(concept_region(tiny.model, [concept], [BOX], SIZE, outside, "conditional"))
    both = draw(concept_region(tiny.model, [concept], [BOX], SIZE, outside))
    monkeypatch.setattr(BasicTransformerBlock, "forward", formula([(BOX, concept)], outside == "raw", True))
    assert same(ours, draw(tiny.model))
    assert not same(ours, both)


def test_conditional_rows_are_the_positives_in_any_guiders_order(tiny, encode, phrase, monkeypatch):
    """DualCFG puts the negative first, and another pack's further pass may hold the negative alone."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    def draw(model):
        def again(args):
            comfy.samplers.calc_cond_batch(
                args["model"], [args["uncond"], None], args["input"], args["sigma"], args["model_options"]
            )
            return args["denoised"]

        model = model.clone()
        model.set_model_sampler_post_cfg_function(again)
        guider = Guider_DualCFG(model)
        guider.set_conds(encode("a red star"), encode("a beach"), encode(""))
        guider.set_cfg(4.0, 2.0)
        latent = torch.zeros(1, 4, 16, 18)
        euler = comfy.samplers.ksampler("euler")
        with torch.no_grad():
            return guider.sample(latent + 1, latent, euler, torch.tensor([10.0, 5.0, 0.0]), disable_pbar=True)

    concept = phrase("a blue robot")
    ours = draw(concept_region(tiny.model, [concept], [BOX], SIZE, rows="conditional"))
    plain = draw(tiny.model)
    monkeypatch.setattr(BasicTransformerBlock, "forward", formula([(BOX, concept)], False, True, positive=2))
    assert same(ours, draw(tiny.model))
    assert not same(ours, plain)


@pytest.mark.parametrize("outside", ["ca", "raw"])
def test_rows_with_their_own_concepts_and_two_regions(draw, tiny, phrase, monkeypatch, outside):
    pair = [phrase("a blue robot"), phrase("a cat")]
    model = concept_region(tiny.model, pair, [BOX], SIZE, outside)
    model = concept_region(model, [phrase("a lamp")], [OTHER], SIZE, outside)
    ours = draw(model, batch=2)
    regions = [(BOX, torch.cat(pair)), (OTHER, phrase("a lamp"))]
    monkeypatch.setattr(BasicTransformerBlock, "forward", formula(regions, outside == "raw"))
    assert same(ours, draw(tiny.model, batch=2))


@pytest.mark.parametrize("outside", ["ca", "raw"])
def test_a_picture_without_a_concept_is_left_alone(draw, tiny, phrase, outside):
    ours = draw(concept_region(tiny.model, [None, phrase("a cat")], [BOX], SIZE, outside), batch=2)
    plain = draw(tiny.model, batch=2)
    full = draw(concept_region(tiny.model, [phrase("a cat")], [BOX], SIZE, outside), batch=2)
    assert same(ours[0], plain[0]) and same(ours[1], full[1])
    assert not same(full[0], plain[0])


def test_boxes_of_their_own(draw, tiny, phrase):
    ours = draw(concept_region(tiny.model, [phrase("a cat")], [BOX, OTHER], SIZE), batch=2)
    for row, box in enumerate((BOX, OTHER)):
        assert same(ours[row], draw(concept_region(tiny.model, [phrase("a cat")], [box], SIZE), batch=2)[row])


def test_the_prompt_everywhere_is_the_plain_model(draw, tiny, encode):
    text = encode("a red star on a beach")
    ours = draw(concept_region(tiny.model, [text[0][0]], [WHOLE], SIZE), positive=text, negative=text, cfg=1.0)
    assert same(ours, draw(tiny.model, positive=text, negative=text, cfg=1.0))


def test_a_longer_phrase_beside_a_shorter_one(draw, tiny, phrase):
    long = torch.cat([phrase("a blue robot"), phrase("a cat")], 1)
    ours = draw(concept_region(tiny.model, [long, phrase("a cat")], [BOX], SIZE), batch=2)
    want = draw(concept_region(tiny.model, [phrase("a cat")], [BOX], SIZE), batch=2)
    assert same(ours[1], want[1])


@pytest.mark.parametrize("outside", ["ca", "raw"])
def test_other_packs_patches_still_act(draw, tiny, phrase, outside):
    """A pack that doubles cross-attention's output before us, and one that replaces a block's, must both be heard."""

    def replaced(q, k, v, options):
        return torch.zeros_like(q)

    patched = tiny.model.clone()
    patched.set_model_attn2_output_patch(lambda n, options: n * 2)
    patched.set_model_attn2_replace(replaced, "output", 3)
    alone = draw(patched)
    both = draw(concept_region(patched, [phrase("a cat")], [BOX], SIZE, outside))
    only = draw(concept_region(tiny.model, [phrase("a cat")], [BOX], SIZE, outside))
    assert not same(both, alone) and not same(both, only)


def test_an_area_condition_gets_its_part_of_the_box(draw, tiny, encode, phrase, monkeypatch):
    text = encode("a red star on a beach")
    text = [[text[0][0], {**text[0][1], "area": (16, 8, 0, 10), "strength": 1.0}], *text]
    calls, real = [], patch.cell_mask
    monkeypatch.setattr(patch, "cell_mask", lambda *args: calls.append((args[2:], real(*args))) or calls[-1][1])
    draw(concept_region(tiny.model, [phrase("a cat")], [BOX], SIZE), positive=text, steps=1)
    cropped = {mask.any(1)[0].sum().item() for (grid, _, area), mask in calls if area[3] == 8 and grid == (16, 8)}
    # The box ends at pixel 98, cell 12.25; the area begins at cell 10.
    assert cropped == {3}


def test_the_plain_model_is_untouched(draw, tiny, phrase):
    before = draw(tiny.model)
    draw(concept_region(tiny.model, [phrase("a cat")], [BOX], SIZE))
    assert torch.equal(draw(tiny.model), before)


def test_cells_floor_and_ceil_and_never_vanish():
    thin = {"x": 70, "y": 30, "width": 1, "height": 1}
    for grid in ((16, 18), (8, 9), (4, 5), (1, 1)):
        for box in (BOX, OTHER, WHOLE, thin):
            got = cell_mask([box], SIZE, grid, (16, 18), (0, 0, 16, 18))[0]
            assert torch.equal(got.flatten(), inside_grid(box, *grid)), (grid, box)
        assert cell_mask([thin], SIZE, grid, (16, 18), (0, 0, 16, 18)).sum() == 1


def test_boxes_from_masks_and_sockets():
    mask = torch.zeros(2, *SIZE)
    mask[0, 20:90, 37:98] = 1
    mask[1, 3, 4] = 1
    assert mask_boxes(mask) == [BOX, {"x": 4, "y": 3, "width": 1, "height": 1}]
    assert single_boxes([[BOX], [OTHER]], 2, *SIZE) == [BOX, OTHER]
    assert (
        single_boxes({"x": 100.4, "y": -5, "width": 100, "height": 20}, 2, *SIZE)
        == [{"x": 100, "y": 0, "width": 44, "height": 15}] * 2
    )


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: mask_boxes(torch.zeros(1, 4, 4)), "mask is empty"),
        (lambda: single_boxes([BOX, OTHER], 1, *SIZE), "2 boxes for one picture where one is needed"),
        (lambda: single_boxes([[BOX], []], 2, *SIZE), "no box for picture 2 of 2. Draw one, or connect a mask alone"),
        (lambda: single_boxes([], 1, *SIZE), "no box for picture 1 of 1"),
        (lambda: single_boxes({**BOX, "x": 500}, 1, *SIZE), "covers no pixel"),
    ],
)
def test_bad_boxes_say_so(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_bad_regions_say_so(draw, tiny, phrase):
    cat = phrase("a cat")
    with pytest.raises(ValueError, match="takes 128"):
        concept_region(tiny.model, [cat[..., :64]], [BOX], SIZE)
    with pytest.raises(ValueError, match="another aspect"):
        draw(concept_region(tiny.model, [cat], [BOX], (128, 200)))
    with pytest.raises(ValueError, match="has 2 boxes and the sampler works on 1"):
        draw(concept_region(tiny.model, [cat], [BOX, OTHER], SIZE))
    for outside in ("ca", "raw"):
        with pytest.raises(ValueError, match="has 3 concepts and the sampler works on 1"):
            draw(concept_region(tiny.model, [cat] * 3, [BOX], SIZE, outside))
