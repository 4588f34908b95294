"""Photos as a data set: where the subject is, squares within the picture, and what is encoded how often."""

import weakref

import pytest
import torch
from inlay.attention.boxes import box_mask
from inlay.host import subject_views
from inlay.host.subject_photos import Photo, read_photos
from inlay.host.subject_views import CHUNK, Item, make_views
from inlay.training.mask_augmentation import Sides
from inlay.training.subject_settings import SubjectSettings

BOX = {"x": 40, "y": 30, "width": 50, "height": 40}


@pytest.fixture
def encodings(monkeypatch):
    """How many pictures each call of the encoder was given."""
    counts, real = [], subject_views.encode_picture

    def encode(vae, pictures):
        counts.append(len(pictures))
        return real(vae, pictures)

    monkeypatch.setattr(subject_views, "encode_picture", encode)
    return counts


def views_of(tiny, photos, holes=True, count=3, **changes):
    settings = SubjectSettings(resolution=64, **changes)
    items = [Item(number, view, photo) for number, photo in enumerate(photos) for view in range(count)]
    references = []
    return make_views(tiny.vae, items, settings, holes, references.append if holes else None, 32), references


def test_one_mask_stands_for_all_photos():
    images = [torch.rand(3, 64, 80, 3)]
    photos = read_photos(images, [box_mask([BOX], 128, 160)[None]], None, True)
    assert [photo.box for photo in photos] == [Sides(20, 15, 45, 35)] * 3


def test_of_several_boxes_the_largest_counts():
    large, small = BOX, {"x": 0, "y": 0, "width": 60, "height": 20}
    images = [torch.rand(1, 128, 160, 3), torch.rand(1, 128, 160, 3)]
    for boxes in ([[small, large]], [[[small, large], [large]]], [[large, small], [large]]):
        photos = read_photos(images, (), boxes, True)
        assert [photo.box for photo in photos] == [Sides(40, 30, 90, 70)] * 2


def test_boxes_of_a_list_of_pictures_and_of_several_batches_are_each_photos_own():
    boxes = [{**BOX, "x": x} for x in (10, 20, 30, 40)]
    images = [torch.rand(1, 128, 160, 3) for _ in range(4)]
    # As Find Box gives them: it runs once a picture of a list, or once a batch, and lists each picture's boxes.
    alone = [[[box]] for box in boxes]
    pairs = [[[box] for box in boxes[:2]], [[box] for box in boxes[2:]]]
    mixed = [boxes[0], [boxes[1]], [[boxes[2]], [boxes[3]]]]
    for given, pictures in ((alone, images), (pairs, [torch.cat(images[:2]), torch.cat(images[2:])]), (mixed, images)):
        found = [photo.box.left for photo in read_photos(pictures, (), given, True)]
        assert found == [10, 20, 30, 40]
    assert [photo.box.left for photo in read_photos(images[:2], (), alone[:2], True)] == [10, 20]
    for given in ([*alone[:3], []], [*alone[:3], [[]]]):
        with pytest.raises(ValueError, match="no box for photo 4 of 4"):
            read_photos(images, (), given, True)
    with pytest.raises(ValueError, match="boxes for 3 images, not 4"):
        read_photos(images, (), alone[:3], True)


def test_each_view_says_whether_a_mask_tells_its_subject(tiny):
    with_mask, without = Photo(torch.rand(96, 96, 3), box_mask([BOX], 96, 96)), Photo(torch.rand(96, 96, 3), None)
    views, _ = views_of(tiny, [with_mask, without], holes=False)
    assert views.told.tolist() == [True] * 3 + [False] * 3 and not views.all_told
    assert views.told_at(torch.tensor([4, 0])).tolist() == [False, True]
    assert views_of(tiny, [with_mask], holes=False)[0].all_told
    untold, _ = views_of(tiny, [without], holes=False)
    assert untold.subject is None and not untold.all_told


def test_views_that_show_the_same_are_encoded_once(tiny, encodings):
    photos = read_photos([torch.rand(2, 96, 96, 3)], [box_mask([BOX], 96, 96)[None]], None, True)
    views, references = views_of(tiny, photos, mask_augmentation="none")
    assert encodings == [2] and len(views.latents) == len(views.shown) == 6
    assert all(torch.equal(views.latents[row], views.latents[row // 3 * 3]) for row in range(6))
    assert not torch.equal(views.latents[0], views.latents[3])
    assert all(len(values) == 6 for values in views.channels.values())
    # The references are of each view its own, and so is what is shown of them.
    assert len({reference.sum().item() for reference in references}) > 2
    assert not torch.equal(views.shown[0], views.shown[1]) or not torch.equal(views.shown[1], views.shown[2])
    alone, _ = views_of(tiny, photos[1:], mask_augmentation="none", count=1)
    assert torch.allclose(alone.latents[0], views.latents[3], atol=1e-5)
    encodings.clear()
    views_of(tiny, photos, mask_augmentation="paper")
    assert sum(encodings) == 6


def test_squares_that_come_out_alike_are_encoded_once(tiny, encodings):
    """A square photo without a mask has one square only, whatever is drawn."""
    photos = read_photos([torch.rand(2, 96, 96, 3)], (), None, False)
    views, _ = views_of(tiny, photos, holes=False, count=12)
    assert encodings == [2] and len(views.latents) == 24
    assert torch.equal(views.latents[0], views.latents[11]) and not torch.equal(views.latents[0], views.latents[12])


def test_photos_and_squares_are_in_memory_a_few_at_a_time(tiny, encodings, monkeypatch):
    monkeypatch.setattr(subject_views, "SHOWN_SIDE", 32)
    alive, most = weakref.WeakSet(), []

    def items():
        for number in range(20):
            photo = Photo(torch.rand(80, 100, 3), box_mask([BOX], 80, 100))
            alive.add(photo.picture)
            # Of the one before, the loop may still hold its last item.
            most.append(len(alive))
            yield Item(number, 0, photo)
            del photo

    references = []
    views = make_views(tiny.vae, items(), SubjectSettings(resolution=64), True, references.append, 32)
    assert max(most) <= 2 and max(encodings) <= CHUNK and len(views.latents) == 20
    assert views.shown.shape == (20, 32, 96, 3) and views.shown.dtype == torch.uint8


def test_a_photo_whose_subject_is_nowhere_named_is_cut_within_its_borders(tiny):
    ramp = torch.linspace(0, 1, 160)[None, None, :, None].expand(1, 96, 160, 3)
    photo = read_photos([ramp], (), None, False)[0]
    assert photo.box is None
    views, _ = views_of(tiny, [photo], holes=False, count=12)
    columns = views.shown[:, 32, :, 0].int()
    # A square that reached beyond the photo would repeat the border's column.
    assert (columns.diff(dim=1) > 0).all()
    assert len(set(columns[:, 0].tolist())) > 6
