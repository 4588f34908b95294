"""What a swap is told."""

from dataclasses import dataclass

from ..guidance.contrastive import WEIGHT
from ..guidance.distillation import LEARNING_RATE

PASTES = ("exact", "feather", "none")
TIMESTEPS = ("random", "ladder", "unsorted")
BGM = ("auto", "on", "off")
SECR = ("auto", "both", "source", "target", "off")


@dataclass(frozen=True)
class SwapTexts:
    """Sentences about the picture before and after, the phrases of what goes and what comes, and the negative."""

    source: str
    target: str
    source_concept: str
    target_concept: str
    negative: str = ""


@dataclass(frozen=True)
class SwapSettings:
    """method: of guidance.distillation.METHODS. skip: SSGU's lambda, updates a gradient. timesteps: of TIMESTEPS,
    within t_min..t_max. bgm: of BGM, secr: of SECR; auto is the method's own. outside: ca or raw, rows: both or
    conditional, SECR's. contrast: CDS's weight. learning_rate: of the replaced SGD, before the published constant.
    paste: of PASTES; feather: pixels inside the box.
    """

    method: str = "instantswap"
    iterations: int = 550
    skip: int = 5
    guidance: float = 7.5
    seed: int = 0
    timesteps: str = "random"
    t_min: int = 100
    t_max: int = 899
    bgm: str = "auto"
    secr: str = "auto"
    outside: str = "ca"
    rows: str = "both"
    momentum: float = 0.0
    contrast: float = WEIGHT
    learning_rate: float = LEARNING_RATE
    paste: str = "exact"
    feather: int = 4
