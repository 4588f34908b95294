"""InlayRank through its own execute, under the executor's inference mode."""

import pytest
import torch
from inlay.guidance.region_view import cut_out, cut_square, grey_outside, square_box
from inlay.host.clip_pairs import embed_text
from inlay.nodes.rank import Rank
from torch.nn.functional import normalize


def rank(*args, **options):
    with torch.inference_mode():
        return Rank.execute(*args, **options).args


@pytest.fixture
def candidates():
    return torch.rand(5, 64, 64, 3, generator=torch.Generator().manual_seed(3)).mul(255).round() / 255


def test_best_first_by_words(tiny, candidates):
    with torch.no_grad():
        host = normalize(tiny.clip_vision.encode_image(candidates).image_embeds, dim=-1)
    want = host @ embed_text(tiny.clip, tiny.clip_vision, "a red star")
    images, scores, indices = rank(candidates, tiny.clip_vision, 3, clip=tiny.clip, text="a red star")
    assert indices == want.argsort(descending=True)[:3].tolist()
    torch.testing.assert_close(torch.tensor(scores), want.sort(descending=True).values[:3], atol=1e-6, rtol=0)
    assert torch.equal(images, candidates[indices])


def test_a_candidate_that_is_the_reference_wins(tiny, candidates):
    images, scores, indices = rank(candidates, tiny.clip_vision, 0, reference=candidates[3:4])
    assert indices[0] == 3 and scores[0] == pytest.approx(1, abs=1e-5)
    assert len(images) == 5 and scores == sorted(scores, reverse=True)


def test_words_and_reference_count_alike(tiny, candidates):
    options = {"keep": 0, "clip_vision": tiny.clip_vision}

    def by_place(**more):
        _, scores, indices = rank(candidates, **options, **more)
        return torch.tensor(scores)[torch.tensor(indices).argsort()]

    words = by_place(clip=tiny.clip, text="a star")
    likeness = by_place(reference=candidates[:2])
    both = by_place(clip=tiny.clip, text="a star", reference=candidates[:2])
    torch.testing.assert_close(both, (words + likeness) / 2)


def test_only_the_masked_place_counts(tiny, candidates):
    mask = torch.zeros(1, 64, 64)
    mask[:, 20:40, 10:50] = 1
    changed = candidates.clone()
    changed[:, :20] = 0
    changed[:, :, 50:] = 1
    options = {"keep": 0, "reference": candidates[:1], "mask": mask}
    assert rank(candidates, tiny.clip_vision, **options)[1] == rank(changed, tiny.clip_vision, **options)[1]
    kept = rank(changed, tiny.clip_vision, **options, outside="keep")[1]
    assert kept != rank(candidates, tiny.clip_vision, **options, outside="keep")[1]
    assert rank(candidates, tiny.clip_vision, **options)[1] != rank(candidates.flip(1), tiny.clip_vision, **options)[1]


def test_equal_pictures_keep_their_order(tiny, candidates):
    same = candidates[:1].repeat(4, 1, 1, 1)
    assert rank(same, tiny.clip_vision, 0, reference=candidates[1:2])[2] == [0, 1, 2, 3]


def test_bad_input_says_so(tiny, candidates):
    for sentence, options in {
        "nothing to compare": {},
        "no CLIP": {"text": "a star"},
        "empty": {"reference": candidates[:1], "mask": torch.zeros(1, 64, 64)},
        "3 masks and 5": {"reference": candidates[:1], "mask": torch.ones(3, 64, 64)},
        "same aspect": {"reference": candidates[:1], "mask": torch.ones(1, 64, 20)},
    }.items():
        with pytest.raises(ValueError, match=sentence):
            rank(candidates, tiny.clip_vision, 1, **options)
    with pytest.raises(ValueError, match="There is no CLIP_VISION"):
        rank(candidates, None, 1, reference=candidates[:1])


def test_the_square_holds_the_mask_and_may_leave_the_picture():
    mask = torch.zeros(20, 30)
    mask[3:5, 0:12] = 1
    top, left, side = square_box(mask, margin=0.0)
    assert (top, left, side) == (-2, 0, 12)
    picture = torch.arange(600.0).reshape(1, 20, 30)
    cut = cut_square(picture, (top, left, side), fill=-1)
    assert cut.shape == (1, 12, 12) and (cut[:, :2] == -1).all()
    assert torch.equal(cut[0, 2:], picture[0, :10, :12])


def test_outside_is_grey_and_a_full_mask_changes_nothing():
    picture = torch.rand(2, 3, 16, 16)
    assert torch.equal(grey_outside(picture, torch.zeros(1, 16, 16)), torch.full_like(picture, 0.5))
    torch.testing.assert_close(grey_outside(picture, torch.ones(1, 16, 16)), picture)
    assert cut_out(picture, torch.ones(1, 16, 16), 8).shape == (2, 3, 8, 8)
