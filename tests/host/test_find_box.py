"""Find Box and Mask Salient Part as nodes, and the concept's tokens by the host's own tokenizers."""

from types import SimpleNamespace

import comfy.model_base
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.text_encoders.sd2_clip
import pytest
import safetensors.torch
import torch
from inlay.attention.boxes import boxes_to_masks
from inlay.host import find_box as find_box_module
from inlay.host.attention_pass import draw_noises
from inlay.host.find_box import find_boxes
from inlay.host.tokens import concept_positions, tokens_without
from inlay.host.word_gain import word_gain
from inlay.nodes.boxes import FindBox
from inlay.nodes.saliency import SaliencyMask

PROMPT = "a red star on a beach"


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(2, 120, 141, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def mask_salient(tiny, pictures):
    def run(image=pictures, source="self-attention", threshold=1.0, layer="auto", **options):
        found = SaliencyMask.execute(tiny.model, tiny.vae, image, source, threshold, layer, "300", 1, **options)
        return found.result

    return run


def test_the_nodes_box_is_what_its_maps_say(tiny, pictures, monkeypatch):
    """Box, masks and maps belong together, with a bright square planted into the map of each pass."""
    planted = torch.full((3, 16, 18), 0.1)
    planted[0, 4:8, 5:9] = 1.0
    planted[1, 6:10, 5:7] = 1.0
    planted[2, 14:16, 16:18] = 0.3
    monkeypatch.setattr(find_box_module, "word_maps", lambda *a: planted)
    arguments = (tiny.model, tiny.clip, tiny.vae, pictures, PROMPT, "star", 2.0, 0.5, 3, 0)
    mask, bbox, bboxes, soft, preview = FindBox.execute(*arguments).result
    assert bboxes == [[bbox], [bbox]]
    assert abs(bbox["x"] - 40) <= 4 and abs(bbox["y"] - 32) <= 4
    assert abs(bbox["x"] + bbox["width"] - 72) <= 4 and abs(bbox["y"] + bbox["height"] - 80) <= 4
    assert torch.equal(mask, boxes_to_masks(bboxes, 2, 120, 141))
    assert soft.shape == mask.shape and soft.max() <= 1 and preview.shape == pictures.shape
    grown = FindBox.execute(*arguments[:-1], 5).result[1]
    assert grown["x"] == bbox["x"] - 5 and grown["width"] == bbox["width"] + 10


def test_a_picture_is_found_the_same_alone_and_in_a_batch(tiny, pictures):
    both = find_boxes(tiny.model, tiny.clip, tiny.vae, pictures, PROMPT, "star", passes=2, stretch=True)
    second = find_boxes(tiny.model, tiny.clip, tiny.vae, pictures[1:], PROMPT, "star", passes=2, stretch=True)
    assert both.boxes[1] == second.boxes[0] and len(both.boxes) == 2
    assert torch.allclose(both.soft[1:], second.soft, atol=1e-3)
    assert not torch.allclose(both.soft[0], both.soft[1], atol=1e-2)


def test_the_model_is_untouched(tiny, pictures, sample):
    plain = sample(tiny.model)
    find_boxes(tiny.model, tiny.clip, tiny.vae, pictures[:1], PROMPT, "star", passes=1)
    assert torch.equal(sample(tiny.model), plain)


def test_words_decide_where(tiny, pictures):
    star, beach = (
        find_boxes(tiny.model, tiny.clip, tiny.vae, pictures[:1], PROMPT, word, passes=1).soft
        for word in ("star", "beach")
    )
    assert not torch.allclose(star, beach, atol=1e-3)


def test_nothing_above_the_threshold_names_the_picture(tiny, pictures, monkeypatch):
    monkeypatch.setattr(find_box_module, "word_maps", lambda *a: torch.full((1, 16, 18), 0.2))
    with pytest.raises(ValueError, match="^Picture 1 of 2: No place reaches the threshold 0.5"):
        find_boxes(tiny.model, tiny.clip, tiny.vae, pictures, PROMPT, "star", passes=1)
    with pytest.raises(ValueError, match="^No place reaches the threshold 0.5"):
        find_boxes(tiny.model, tiny.clip, tiny.vae, pictures[:1], PROMPT, "star", passes=1)


@pytest.mark.parametrize("outline", ["words", "salient part"])
def test_attention_that_is_not_a_number_says_so(tiny, pictures, mask_salient, monkeypatch, outline):
    broken = tiny.model.clone()
    broken.set_model_attn1_patch(lambda q, k, v, extra: (q * float("nan"), k, v))
    broken.set_model_attn2_patch(lambda q, k, v, extra: (q * float("nan"), k, v))
    with pytest.raises(ValueError, match="attention holds values that are not numbers"):
        find_boxes(broken, tiny.clip, tiny.vae, pictures[:1], PROMPT, "star", passes=1, outline=outline)
    monkeypatch.setattr(tiny, "model", broken)
    with pytest.raises(ValueError, match="attention holds values that are not numbers"):
        mask_salient()


@pytest.mark.parametrize("node", ["box", "saliency"])
def test_flow_and_joint_attention_models_are_refused(tiny, pictures, mask_salient, node, monkeypatch):
    flow = tiny.model.clone()
    sampling = comfy.model_base.model_sampling(tiny.model.model.model_config, comfy.model_base.ModelType.FLOW)
    flow.add_object_patch("model_sampling", sampling)
    joint = tiny.model.clone()
    joint.add_object_patch("diffusion_model", torch.nn.Identity())
    for model in (flow, joint):
        monkeypatch.setattr(tiny, "model", model)
        with pytest.raises(ValueError, match="SD1.x, SD2.x"):
            if node == "box":
                find_boxes(model, tiny.clip, tiny.vae, pictures, PROMPT, "star")
            else:
                mask_salient()


@pytest.mark.parametrize("source", ["self-attention", "calibrated self-attention", "attention to the border", "words"])
def test_every_source_masks_at_its_threshold(mask_salient, tiny, source):
    options = {"clip": tiny.clip, "words": "star", "prompt": PROMPT} if source == "words" else {}
    mask, soft, preview = mask_salient(source=source, **options)
    assert mask.shape == soft.shape == (2, 120, 141) and preview.shape == (2, 120, 141, 3)
    assert torch.equal(mask, (soft >= 0.5).float()) and 0 < mask.mean() < 1
    assert soft.min() >= 0 and soft.max() <= 1


def test_the_papers_map_has_mean_one_at_the_pictures_size(mask_salient, pictures):
    _, soft, _ = mask_salient(pictures[:, :120, :136], layer="16x16")
    assert (2 * soft.mean((1, 2)) - 1).abs().max() < 0.02


def test_clean_up_and_largest_part(mask_salient):
    plain = mask_salient(layer="16x16")[0]
    cleaned = mask_salient(layer="16x16", clean_up=3)[0]
    largest = mask_salient(layer="16x16", largest_part=True)[0]
    assert not torch.equal(plain, cleaned) and not torch.equal(plain, largest)
    assert (largest <= plain).all() and largest.sum() > 0


def test_words_alone_are_their_own_prompt(mask_salient, tiny):
    alone = mask_salient(source="words", clip=tiny.clip, words="red star")[1]
    assert torch.equal(alone, mask_salient(source="words", clip=tiny.clip, words="red star", prompt="red star")[1])


def test_a_text_changes_the_self_attention_map(mask_salient, encode):
    assert not torch.equal(mask_salient()[1], mask_salient(positive=encode(PROMPT))[1])


def test_the_users_mask_is_handed_on(mask_salient):
    given = torch.zeros(1, 60, 70)
    given[:, 10:30, 20:40] = 0.75
    mask, soft, _ = mask_salient(torch.rand(2, 120, 140, 3), source="mask", mask=given)
    assert soft.shape == (2, 120, 140) and mask[:, 24:56, 44:76].min() == 1 and mask[:, :16].max() == 0
    assert abs(float(soft[0, 40, 60]) - 0.75) < 1e-6
    with pytest.raises(ValueError, match="no mask is connected"):
        mask_salient(source="mask")
    with pytest.raises(ValueError, match="There are 3 masks for 2 pictures"):
        mask_salient(torch.rand(2, 60, 70, 3), source="mask", mask=given.expand(3, -1, -1))


@pytest.mark.parametrize("white", [0.0, 0.4])
def test_a_mask_of_the_users_with_nothing_in_it_is_refused(mask_salient, white):
    """Also a soft one, of which a half leaves nothing."""
    given = torch.ones(2, 60, 70)
    given[1] = white
    image = torch.rand(2, 60, 70, 3)
    with pytest.raises(ValueError, match="^The mask holds nothing of a half or more. Paint the salient part white.$"):
        mask_salient(image, source="mask", mask=given[1:])
    with pytest.raises(ValueError, match="^Mask 2 of 2 holds nothing of a half or more."):
        mask_salient(image, source="mask", mask=given)
    assert mask_salient(image, source="mask", mask=given[:1])[0].min() == 1


def test_no_salient_part_says_so(mask_salient, pictures):
    with pytest.raises(ValueError, match="^Picture 1 of 2 has no salient part above the threshold 9"):
        mask_salient(threshold=9.0)
    with pytest.raises(ValueError, match="^The picture has no salient part above the threshold 9"):
        mask_salient(pictures[:1], threshold=9.0)


# The tokens.


def clip_of(tokenizer):
    return SimpleNamespace(tokenizer=tokenizer, tokenize=tokenizer.tokenize_with_weights)


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embeddings")
    save = safetensors.torch.save_file
    save({"clip_l": torch.randn(3, 768), "clip_g": torch.randn(3, 1280)}, folder / "both.safetensors")
    save({"clip_l": torch.randn(2, 768)}, folder / "small.safetensors")
    save({"clip_g": torch.randn(2, 1280)}, folder / "large.safetensors")
    return str(folder)


@pytest.fixture(scope="module")
def clips(embeddings):
    return SimpleNamespace(
        sd1=clip_of(comfy.sd1_clip.SD1Tokenizer(embedding_directory=embeddings)),
        sd2=clip_of(comfy.text_encoders.sd2_clip.SD2Tokenizer(embedding_directory=embeddings)),
        sdxl=clip_of(comfy.sdxl_clip.SDXLTokenizer(embedding_directory=embeddings)),
    )


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize(
    ("prompt", "concept", "positions"),
    [
        (PROMPT, "star", [3]),
        (PROMPT, "Red Star", [2, 3]),
        (PROMPT, "star, beach", [3, 6]),
        ("a (red:1.3) (star:0.7), a star", "star", [3, 6]),
        ("starfish and a star", "star", [4]),
        ("a corgipoo here", "corgipoo", [2, 3, 4]),
        ("star " * 80, "star", [*range(1, 76), *range(78, 83)]),
    ],
)
def test_words_are_found_by_the_real_tokenizer(clips, family, prompt, concept, positions):
    assert concept_positions(getattr(clips, family), prompt, concept) == positions


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_words_are_left_out_of_every_encoder(clips, family):
    clip = getattr(clips, family)
    assert tokens_without(clip, PROMPT, "red star, beach") == clip.tokenize("a on a")
    if family != "sd2":  # The file holds vectors for the others.
        learned = "a photo of embedding:both on a beach"
        assert tokens_without(clip, learned, "embedding:both") == clip.tokenize("a photo of on a beach")
    many = tokens_without(clip, "star " * 80, "star")
    assert all([len(chunk) for chunk in chunks] == [77, 77] for chunks in many.values())
    assert all(len(set(map(repr, chunk))) <= 3 for chunks in many.values() for chunk in chunks)


def test_learned_concepts_are_found(clips):
    prompt = "a photo of embedding:both on a beach"
    assert concept_positions(clips.sd1, prompt, "embedding:both") == [4, 5, 6]
    assert concept_positions(clips.sdxl, prompt, "embedding:both") == [4, 5, 6]
    assert concept_positions(clips.sd1, prompt, "beach") == [9]


def test_sdxl_reads_the_encoder_that_keeps_a_one_sided_concept(clips):
    """The other encoder drops its vectors, so that only this one's positions are those of the conditioning."""
    assert concept_positions(clips.sdxl, "a photo of embedding:small here", "embedding:small") == [4, 5]
    assert concept_positions(clips.sdxl, "a photo of embedding:large here", "embedding:large") == [4, 5]
    with pytest.raises(ValueError, match="belongs to another model"):
        concept_positions(clips.sd1, "a photo of embedding:large here", "here")


@pytest.mark.parametrize(
    ("prompt", "concept", "words"),
    [
        (PROMPT, "cat", 'does not hold "cat". Name one of its words: a, red, star, on, beach.'),
        (PROMPT, "star red", 'does not hold "star red"'),
        (PROMPT, "star, cat", 'does not hold "cat"'),
        (PROMPT, "embedding:none", "no learned concept embedding:none for this text encoder. Check its name"),
        ("a photo of embedding:none", "photo", "no learned concept embedding:none for this"),
        ("a photo of (embedding:none:1.2)", "photo", "no learned concept embedding:none for this"),
        (PROMPT, "embedding:both", 'does not hold "embedding:both"'),
        ("a (red:1.2) embedding:both, star", "cat", "its words: a, red, embedding:both, star."),
        ("", "cat", "its words: none."),
        (PROMPT, " , ", "No word to look for is given"),
    ],
)
def test_missing_words_are_named(clips, prompt, concept, words):
    with pytest.raises(ValueError) as raised:
        concept_positions(clips.sd1, prompt, concept)
    assert words in str(raised.value)


def test_a_missing_text_encoder_is_named():
    with pytest.raises(ValueError, match="no text encoder"):
        concept_positions(None, PROMPT, "star")


def test_the_salient_part_is_the_one_that_the_words_tell_most_of(tiny, pictures, monkeypatch):
    """Two parts stand out; attention is on the left one, and without the words the right one is known worse."""
    salient, attention = torch.zeros(1, 120, 141), torch.full((1, 16, 18), 0.1)
    salient[:, 20:50, 10:40] = salient[:, 60:100, 80:130] = 2.0
    attention[:, 2:7, 1:5] = 1.0
    monkeypatch.setattr(find_box_module, "saliency_scores", lambda *a, **k: salient)
    monkeypatch.setattr(find_box_module, "word_maps", lambda *a: attention)
    gain = torch.zeros(1, 120, 141)
    gain[:, 55:, 70:] = 0.2
    monkeypatch.setattr(find_box_module, "word_gain", lambda *a: gain)
    arguments = tiny.model, tiny.clip, tiny.vae, pictures[:1], PROMPT, "star"
    (box,) = find_boxes(*arguments, threshold=1.25, outline="salient part").boxes
    assert box == {"x": 80, "y": 60, "width": 50, "height": 40}
    monkeypatch.setattr(find_box_module, "word_gain", lambda *a: -gain)
    (box,) = find_boxes(*arguments, threshold=1.25, margin=4, outline="salient part").boxes
    assert box == {"x": 6, "y": 16, "width": 38, "height": 38}


def test_the_gain_of_words_is_the_error_of_the_noise_without_them_less_that_with_them(tiny, pictures, encode):
    """Against two plain forwards of the network, in a sentence that lacks the words and in the one that has them."""
    picture = torch.rand(1, 64, 72, 3, generator=torch.Generator().manual_seed(1))
    found = word_gain(tiny.model, tiny.clip, tiny.vae, picture, "a red star on a beach", "red star", seed=3)
    net = tiny.model.model
    clean = net.process_latent_in(tiny.vae.encode(picture))
    noises = draw_noises(3, clean, 6)
    errors = []
    for text in ("a on a beach", "a red star on a beach"):
        total = 0
        for number, noise in enumerate(noises):
            sigma = net.model_sampling.sigma(torch.tensor([(350.0, 500.0, 650.0)[number % 3]]))
            with torch.no_grad():
                x0 = net.apply_model(clean + sigma * noise, sigma, c_crossattn=encode(text)[0][0])
            total = total + ((clean + sigma * noise - x0) / sigma - noise).square().mean(1) / 6
        errors.append(total)
    want = torch.nn.functional.interpolate((errors[0] - errors[1])[:, None], (64, 72), mode="bilinear")[:, 0]
    assert found.shape == (1, 64, 72) and found.abs().max() > 1e-4
    assert (found - want).norm() < 1e-3 * want.norm()


def test_no_salient_part_names_the_picture(tiny, pictures):
    said = tiny.model, tiny.clip, tiny.vae, pictures, PROMPT, "star"
    with pytest.raises(ValueError, match="^Picture 1 of 2: No place reaches the threshold 9"):
        find_boxes(*said, threshold=9.0, outline="salient part", passes=1)


def test_a_missing_word_is_told_before_any_picture_is_looked_at(tiny, pictures, monkeypatch):
    looked = []
    monkeypatch.setattr(find_box_module, "saliency_scores", lambda *args, **options: looked.append(args))
    with pytest.raises(ValueError, match="boat"):
        find_boxes(tiny.model, tiny.clip, tiny.vae, pictures, PROMPT, "boat", outline="salient part")
    assert not looked


@pytest.mark.parametrize("outline", ["words", "salient part"])
def test_a_text_encoder_of_another_width_is_refused(tiny, pictures, monkeypatch, outline):
    config = {**tiny.model.model.model_config.unet_config, "context_dim": 2048}
    monkeypatch.setattr(tiny.model.model.model_config, "unet_config", config)
    with pytest.raises(ValueError, match="wide and the model takes 2048. Connect the CLIP that belongs to the model"):
        find_boxes(tiny.model, tiny.clip, tiny.vae, pictures[:1], PROMPT, "star", passes=1, outline=outline)


def test_the_soft_mask_of_a_salient_part_is_what_stands_out_in_its_box(tiny, pictures, monkeypatch):
    salient = torch.zeros(1, 120, 141)
    salient[:, 20:50, 10:40], salient[:, 60:100, 80:130] = 2.0, 3.0
    monkeypatch.setattr(find_box_module, "saliency_scores", lambda *a, **k: salient)
    monkeypatch.setattr(find_box_module, "word_gain", lambda *a: (salient == 2.0).float())
    said = tiny.model, tiny.clip, tiny.vae, pictures[:1], PROMPT, "star"
    found = find_boxes(*said, threshold=2.0, margin=4, outline="salient part")
    assert found.boxes == [{"x": 6, "y": 16, "width": 38, "height": 38}]
    assert torch.equal(found.soft, torch.where(salient == 2.0, 0.5, 0.0))
    # The words' map is not even made.
    monkeypatch.setattr(find_box_module, "word_maps", lambda *a, **k: 1 / 0)
    assert find_boxes(*said, threshold=2.0, margin=4, outline="salient part").boxes == found.boxes
