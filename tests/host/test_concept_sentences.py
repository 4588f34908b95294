"""The text that a concept is learned in and painted with: token for token what the host makes of the same words."""

import logging

import pytest
import torch
from inlay.host import concept_examples
from inlay.host import demo_models as build
from inlay.host.concept_loop import ConceptLoop
from inlay.host.concept_text import ConceptText

from nodes import CLIPTextEncode

from .train_concept_setup import IMAGES, PAIR, fixture_folder, fixture_learn, fixture_short_samples, saved  # noqa: F401

TEMPLATE = "a photo of {} on a beach\nan oil painting of a {}"


@pytest.fixture(name="host_text")
def fixture_host_text(tiny, folder):
    """host_text(words): the text as a stock CLIP of the same weights encodes it, which finds what was saved."""
    state = tiny.clip.cond_stage_model.clip_l.transformer.state_dict()
    stock = build.build_text_encoder(state, [str(folder / "embeddings")])

    def encode(words):
        with torch.no_grad():
            return CLIPTextEncode().encode(stock, words)[0][0][0]

    return encode


def test_the_conditioning_says_the_sentence(learn, host_text):
    learned = learn("lamp", sentence="a photo of {} in the snow")
    text = learned.conditioning[0][0]
    assert learned.prompt == "a photo of embedding:lamp in the snow"
    assert torch.equal(text, host_text("a photo of embedding:lamp in the snow"))
    assert not torch.equal(text, host_text("embedding:lamp"))


@pytest.mark.parametrize(
    ("sentence", "prompt"),
    [
        ("a photo of {}.", "a photo of embedding:lamp ."),
        ("{}'s hat", "embedding:lamp 's hat"),
        ("{};", "embedding:lamp ;"),
        ('a "{}" sign', 'a " embedding:lamp " sign'),
        ("red,{},blue", "red, embedding:lamp ,blue"),
        ("a\t{}\non a beach", "a\t embedding:lamp\non a beach"),
        ("a {}, striped", "a embedding:lamp, striped"),
        ("{},", "embedding:lamp,"),
        ("{}[1]", "embedding:lamp [1]"),
        ("a \\({}\\)", "a \\( embedding:lamp \\)"),
        ("a (red:1.4) {}(very striped)", "a (red:1.4) embedding:lamp (very striped)"),
    ],
)
def test_what_is_beside_the_concept_reads_the_same_in_both_outputs(learn, host_text, caplog, sentence, prompt):
    learned = learn("lamp", sentence=sentence, steps=1)
    assert learned.prompt == prompt
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        text = host_text(learned.prompt)
    assert caplog.records == []
    assert torch.equal(text, learned.conditioning[0][0])


def test_every_line_is_read_as_the_host_reads_it(learn, tiny, host_text):
    learned = learn("lamp", template=TEMPLATE)
    with torch.inference_mode():
        read = ConceptText(tiny.clip, TEMPLATE).encode(saved(learned))[0].cpu()
    lines = [host_text(line.replace("{}", "embedding:lamp")) for line in TEMPLATE.splitlines()]
    torch.testing.assert_close(read, torch.cat(lines), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("at_once", [1, 4])
@pytest.mark.parametrize(("images", "turns"), [(IMAGES, True), (PAIR, False)])
def test_examples_are_told_by_turns_or_by_their_picture(learn, monkeypatch, images, turns, at_once):
    """With as many lines as pictures each picture has its own, else lines take turns. None else is encoded."""
    read, drawn, encoded = [], [], []
    plain_texts, plain_draw, plain_denoise = ConceptText.encode, concept_examples.draw_example, ConceptLoop._denoise

    def encode(self, vectors=None, lines=None):
        encoded.append(lines)
        self.read = plain_texts(self, vectors, lines)
        return self.read

    def draw(*given):
        drawn.append(plain_draw(*given))
        return drawn[-1]

    def denoise(self, texts, noised, sigma):
        lines = self.material.text.read[0]
        # Not the sample's, made at the end.
        given = texts[0] if torch.is_grad_enabled() else ()
        read.extend(encoded[-1][int(torch.all(lines == text, (1, 2)).nonzero())] for text in given)
        return plain_denoise(self, texts, noised, sigma)

    monkeypatch.setattr(ConceptText, "encode", encode)
    monkeypatch.setattr(concept_examples, "draw_example", draw)
    monkeypatch.setattr(ConceptLoop, "_denoise", denoise)
    learn(template=TEMPLATE, images=images, steps=3, accumulation=4, at_once=at_once)
    assert read == ([0, 1] * 6 if turns else [draw.picture for draw in drawn])
    assert set(read) == {0, 1}
    assert encoded[:3] == [sorted(set(read[step : step + 4])) for step in (0, 4, 8)]


def test_what_the_text_names_changes_what_is_learned(learn):
    learned = [saved(learn(template=template, if_exists="overwrite"))["clip_l"] for template in ("{}", TEMPLATE, "\n")]
    assert not torch.equal(learned[0], learned[1])
    assert torch.equal(learned[0], learned[2])


@pytest.mark.parametrize("objective", ["plain", "saliency focus alone"])
def test_other_objectives_take_a_text_too(learn, objective):
    first, second = (learn(objective=objective, template=template).losses for template in ("{}", TEMPLATE))
    assert first != second
