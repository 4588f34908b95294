"""Whether a CLIP pair's words and pictures meet: a projection that was never loaded is whatever the memory held.

Mostly its values give that away (clip_pairs). Where they are another encoder's old weights, only what it does can.
"""

from weakref import WeakKeyDictionary

import comfy.clip_vision
import comfy.sd
import torch

from .clip_pairs import embed_pictures, embed_text
from .notice import show_sentence

# Plain colours, and the words for them that every CLIP was taught.
_COLOURS = {
    "red": (0.85, 0.1, 0.1),
    "green": (0.1, 0.6, 0.15),
    "blue": (0.1, 0.2, 0.85),
    "yellow": (0.95, 0.85, 0.1),
    "purple": (0.5, 0.1, 0.6),
    "pink": (1.0, 0.6, 0.8),
}
_SAID = "a photo of a {} square"
# By chance one of six is right, and four or more in one of a hundred.
_LEAST = 4
_SIDE = 64
_known: WeakKeyDictionary = WeakKeyDictionary()


def colours_found(clip: comfy.sd.CLIP, vision: comfy.clip_vision.ClipVisionModel) -> int:
    """Of how many of six plain colours their own name is the likeliest word. Raises as embed_text."""
    pictures = torch.tensor(list(_COLOURS.values()))[:, None, None].expand(-1, _SIDE, _SIDE, -1)
    words = torch.stack([embed_text(clip, vision, _SAID.format(colour)) for colour in _COLOURS])
    likeness = words @ embed_pictures(vision, pictures).T
    # Some words, and some pictures, are near to everything.
    likeness = likeness - likeness.mean(1, keepdim=True)
    return int((likeness.argmax(0) == torch.arange(len(_COLOURS))).sum())


def tell_if_apart(clip: comfy.sd.CLIP, vision: comfy.clip_vision.ClipVisionModel) -> None:
    """Shows a sentence for a pair whose words do not find their pictures; each pair is looked at once."""
    seen = _known.setdefault(vision.model, WeakKeyDictionary())
    found = seen.get(clip.cond_stage_model)
    if found is None:
        found = seen[clip.cond_stage_model] = colours_found(clip, vision)
    if found < _LEAST:
        show_sentence(
            f"Of {len(_COLOURS)} plain colours this CLIP finds {found} by name: words and pictures do not meet in it. "
            "An SD1.x checkpoint's text encoder comes without its text_projection; load CLIP's own file."
        )
