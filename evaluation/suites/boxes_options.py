"""The options that the suite `boxes` compares: the paper's, the best by words alone, the shipped, and their changes."""

from collections.abc import Mapping

Options = Mapping[str, object]
PAPER: Options = {
    "alpha": 2.0,
    "threshold": 0.5,
    "passes": 3,
    "margin": 0,
    "layer": "16x16",
    "self_attention": True,
    "stretch": False,
    "outline": "words",
}
# What the words alone do best with, chosen on 24 tuning seeds of one thing and 22 of two: on maps of 16 x 16 attention
# between like things carries a box over to the other one.
WORDS: Options = {
    **PAPER,
    "alpha": 1.0,
    "self_attention": False,
    "threshold": 0.6,
    "margin": 14,
    "layer": "decoder",
    "stretch": True,
}
# What the shipped workflows use, chosen on 72 tuning seeds of one thing and 63 of two.
SHIPPED: Options = {
    **WORDS,
    "outline": "salient part",
    "threshold": 1.25,
    "margin": 8,
    "layer": "all",
    "stretch": False,
}
# The words' map chooses nothing there: only what cuts the part out of the picture is left to vary.
AROUND: dict[str, tuple] = {"threshold": (0.75, 1.0, 1.5, 1.75), "margin": (0, 4, 12, 16)}
ABLATED: dict[str, tuple] = {
    "alpha": (0.5, 1.0, 2.0, 3.0),
    "self_attention": (False, True),
    "stretch": (False, True),
    "layer": ("16x16", "16x16 decoder", "8x8 decoder", "middle", "decoder", "all"),
    "passes": (1, 3, 5),
    "threshold": (0.3, 0.4, 0.5, 0.6, 0.7),
    "margin": (0, 6, 10, 14),
}
GRID: dict[str, tuple] = {
    "layer": ("16x16", "16x16 decoder", "8x8 decoder", "decoder", "all"),
    "alpha": (1.0, 2.0, 3.0),
    "self_attention": (False, True),
    "stretch": (False, True),
}
GRID_THRESHOLDS = (0.3, 0.4, 0.5, 0.6)
# How the found map is cut into a box; everything else decides about the map.
CUT = ("threshold", "margin", "outline")

OURS, PAPERS, BY_WORDS = "shipped options", "the paper's options", "outline by words"


def variants() -> dict[str, Options]:
    """The rows' options: the shipped, the paper's, and the best by words alone, the last with each changed in turn."""
    rows: dict[str, Options] = {OURS: SHIPPED, PAPERS: PAPER, BY_WORDS: WORDS}
    for name, values in ABLATED.items():
        for value in values:
            if value != WORDS[name]:
                rows[f"{BY_WORDS}, {named(name, value)}"] = {**WORDS, name: value}
    return rows


def named(name: str, value: object) -> str:
    said = name.replace("_", "-")
    return f"{said} {('off', 'on')[value]}" if isinstance(value, bool) else f"{said} {value}"
