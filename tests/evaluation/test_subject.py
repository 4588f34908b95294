"""The suite `subject`: its places and measures against what they promise, and a tiny run of all of it."""

import json
from types import SimpleNamespace

import inlay.evaluation as evaluation
import pytest
import torch
from inlay.demo.judge import Judge
from inlay.demo.render import mask_boxes, render
from inlay.evaluation import subject_methods
from inlay.evaluation.likeness import PHOTO_MARGIN, Likeness, window_crops
from inlay.evaluation.set_distance import frechet_shares
from inlay.evaluation.subject_places import MASKS, draw_places, photos_of
from inlay.evaluation.suites import subject
from inlay.guidance.metrics import frechet
from PIL import Image

SEED = 90_000_003


def test_places_have_masks_of_the_subjects_own_size_and_larger():
    places = draw_places(SEED, 6)
    own = mask_boxes(places.truth.masks[:, 0]).float()
    assert places.sizes == [*MASKS, *MASKS] and places.mask.shape == places.image.shape[:3]
    for row, size in enumerate(places.sizes):
        inside = places.truth.masks[row, 0] > 0.5
        assert (places.mask[row][inside] == 1).all()
        x, y, width, height = places.box[row].tolist()
        assert places.mask[row].sum() == width * height
        if x > 0 and y > 0 and x + width < 128 and y + height < 128:
            assert abs(width - size * own[row, 2]) <= 2
        # The place is empty: the subject is to be seen in the truth alone.
        assert (places.image[row] - places.truth.image[row]).abs().amax(-1)[inside].mean() > 0.05
    assert 2 <= len(places.photos.image) <= 4 and len(places.photo_texts) == len(places.photos.image)
    assert all("a thing" in text for text in [*places.texts, *places.photo_texts])
    assert all(places.named in text for text in places.asked(places.named))
    other = draw_places(70_000_003, 3)
    assert other.named != places.named or not torch.equal(other.photos.image[0], places.photos.image[0])


def test_a_photo_of_the_subject_is_most_alike_and_picked_out(tiny):
    torch.manual_seed(0)
    judge = Judge().eval().requires_grad_(False)
    photos = [render(photos_of(number, SEED)) for number in (3, 4, 5)]
    single = [SimpleNamespace(image=one.image[:1], masks=one.masks[:1]) for one in photos]
    likeness = Likeness(judge, tiny.clip_vision, single)
    box = mask_boxes(single[0].masks[:, 0]).float()
    side = box[:, 2:].amax(1, keepdim=True) * PHOTO_MARGIN
    around = torch.cat([box[:, :2] + box[:, 2:] / 2 - side / 2, side, side], 1)
    scores = likeness.score(single[0].image, around)
    # The first window is the very crop that the photo is known by.
    assert scores.likeness()[0] > 0.999 and scores.clip[0] > 0.999 and scores.told()[0] == 1
    other = likeness.score(single[1].image, around)
    assert other.likeness()[0] < 0.9 and scores.told(1)[0] == 0 and scores.likeness(1)[0] < 0.9


def test_a_thing_is_found_in_a_corner_of_a_large_mask():
    image = torch.zeros(1, 128, 128, 3)
    image[:, 20:60, 20:60] = 1
    crops = window_crops(image, torch.tensor([[20.0, 20.0, 72.0, 72.0]]))
    assert crops.shape == (14, 1, 3, 64, 64)
    assert crops[0].mean() < 0.4 and crops.mean((1, 2, 3, 4)).amax() > 0.98


def test_distances_are_the_jackknifes_and_none_of_too_few():
    torch.manual_seed(0)
    real = [torch.randn(9, 3) for _ in range(4)]
    painted = [torch.randn(9, 3) + 1 for _ in range(4)]
    shares = frechet_shares(real, painted)
    whole = frechet(torch.cat(real), torch.cat(painted))
    without = frechet(torch.cat(real[1:]), torch.cat(painted[1:]))
    assert shares[0] == pytest.approx(4 * whole - 3 * without)
    assert abs(sum(frechet_shares(real, [torch.randn(9, 3) for _ in range(4)])) / 4) < 0.5 < sum(shares) / 4
    assert frechet_shares(real[:1], painted[:1]) == [None]
    assert frechet_shares([one[:1] for one in real], [one[:1] for one in painted]) == [None] * 4


@pytest.fixture
def small(random_world, monkeypatch, tmp_path):
    for name, value in {"STEPS": 1, "PLACES": 3, "CHOICE": 3}.items():
        monkeypatch.setattr(subject, name, value)
    for name, value in {"TRAIN_STEPS": 1, "BATCH": 1, "VIEWS": 1}.items():
        monkeypatch.setattr(subject_methods, name, value)
    return tmp_path


def test_every_row_trains_paints_and_is_measured(small, capsys):
    assert evaluation.main(["subject", "--seeds", "2", "--out", str(small)]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = {row["name"]: row for row in report["rows"]}
    assert {*subject.METHODS, subject.CEILING, *subject.TRUST} <= set(rows)
    assert {f"{subject.MASK}; mask {size}" for size in MASKS} <= set(rows)
    assert [claim["id"] for claim in report["claims"]] == [
        "lora-near-full",
        "beats-untrained",
        "mask-augmentation-helps",
    ]
    # Two subjects decide nothing.
    assert all(claim["holds"] is None and claim["value"] is not None for claim in report["claims"])
    columns = {"judge likeness", "judge accuracy", "tiny CLIP image", "training seconds", "file MB", "FID pictures"}
    assert all(columns <= set(rows[name]) for name in subject.METHODS)

    def mean(name, metric):
        return rows[name][metric]["mean"]

    sizes = [mean(subject.LORA[rank], "file MB") for rank in (4, 16, 64)]
    assert sizes == sorted(sizes) and sizes[1] < 0.1 * mean(subject.WHOLE, "file MB")
    assert mean(subject.BASE, "training seconds") == 0 < mean(subject.CONCEPT, "training seconds")
    assert mean(subject.CONCEPT, "trained parameters") == 6 * 128
    assert mean(subject.CEILING, "judge likeness") > mean(subject.BASE, "judge likeness")
    # Every training changes what is painted.
    lines = (small / "subject" / "short" / "measured.jsonl").read_text().splitlines()
    first = json.loads(lines[1])["measured"]
    painted = {row: values["tiny CLIP image"] for row, _, values in first if row in subject.METHODS}
    assert len(set(painted.values())) == len(subject.METHODS)
    with Image.open(small / "subject" / "short" / "sheet.jpg") as sheet:
        assert sheet.width > sheet.height


def test_tuning_compares_as_many_rates_of_both_for_as_many_steps(small, capsys, monkeypatch):
    recipes, real = [], subject_methods.SubjectSettings

    def kept(**settings):
        recipes.append(settings)
        return real(**settings)

    monkeypatch.setattr(subject_methods, "SubjectSettings", kept)
    assert evaluation.main(["subject", "--tuning", "--seeds", "2", "--out", str(small)]) == 0
    told = capsys.readouterr()
    rows = {row["name"]: row for row in json.loads(told.out.splitlines()[-1])["rows"]}
    lora, whole = subject_methods.TUNED.values()
    assert len(lora) == len(whole) == 4 and {*lora, *whole, subject.BASE, subject.CEILING} <= set(rows)
    assert f"{lora[1]} - {lora[0]}" in rows and subject.CAPTION not in rows and subject.LORA[16] not in rows
    # Of one seed each rate once, and nothing but the rate and the rank differs.
    assert len(recipes) == 2 * 8
    rates = [recipe.pop("learning_rate") for recipe in recipes[:8]]
    assert rates == [*subject_methods.LORA_RATES, *subject_methods.WHOLE_RATES]
    assert subject_methods.LORA_RATE in rates[:4] and subject_methods.WHOLE_RATE in rates[4:]
    assert all({**recipe, "rank": 16} == {**recipes[0], "rank": 16} for recipe in recipes[:8])
    means = {name: rows[name]["judge likeness"]["mean"] for name in lora}
    assert f"by '{max(lora, key=means.get)}'" in told.err
    # After so few steps of random models neighbours may round alike.
    for names in (lora, whole):
        assert len({rows[name]["tiny CLIP image"]["mean"] for name in (names[0], names[-1])}) == 2


def test_the_storage_is_part_of_what_is_claimed_of_a_lora():
    seeds = range(subject.SUBJECTS)
    claim = subject.CLAIMS[0]

    def judged(lora, file):
        likeness = {"judge likeness": {seed: 0.5 + lora for seed in seeds}, "file MB": dict.fromkeys(seeds, file)}
        whole = {"judge likeness": dict.fromkeys(seeds, 0.5), "file MB": dict.fromkeys(seeds, 28.0)}
        return claim.judge({subject.LORA[16]: likeness, subject.WHOLE: whole})["holds"]

    assert judged(-0.04, 0.9) is True
    assert judged(-0.06, 0.9) is False and judged(-0.04, 1.5) is False
