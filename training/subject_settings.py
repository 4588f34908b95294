"""How a subject is trained: the paper's recipe, a faster one, or the user's own."""

from dataclasses import dataclass, replace

PRESETS: dict[str, dict[str, float]] = {
    # 4 photos x 100 repeats x 40 epochs in batches of 16.
    "paper": {"learning_rate": 3e-5, "batch": 16, "accumulation": 1, "steps": 1000},
    "fast": {"learning_rate": 2e-4, "batch": 4, "accumulation": 1, "steps": 300},
    "custom": {},
}
MODES = ("inpaint", "text")
LOSSES = ("plain", "saliency focus")
PROJECTIONS = ("fixed", "trained")
# Else the focus would count the noisiest steps a hundred times over the others.
SNR_CAP = 5.0


@dataclass(frozen=True)
class SubjectSettings:
    """mode: inpaint is told the subject by a reference picture, text by a prompt, one line for all photos or one for
    each; class_prompt is that of the class pictures. preset: replaces learning_rate,
    batch, accumulation and steps. targets: of lora_training.TARGETS, auto by the mode. alpha: 0 for the rank.
    dropout: of the LoRA's inputs. condition_dropout: share of the rows without their condition. resolution: pixels a
    side. views: augmented pictures a photo. mask_augmentation: of mask_augmentation.MASKS. prior_weight: of the class
    pictures. masked_loss: only the subject counts. loss: plain, or with focus_weight times L_s. epochs: above 0, each
    goes `repeats` times over every photo and they take the place of steps. projection: trained along, or left as it is.
    precision: of the UNet. preview_every: steps, 0 for none.
    """

    mode: str = "inpaint"
    prompt: str = ""
    class_prompt: str = ""
    preset: str = "fast"
    rank: int = 16
    alpha: float = 0.0
    dropout: float = 0.0
    targets: str = "auto"
    steps: int = 300
    learning_rate: float = 3e-5
    batch: int = 4
    accumulation: int = 1
    condition_dropout: float = 0.2
    resolution: int = 512
    views: int = 32
    mask_augmentation: str = "paper"
    reference_augmentation: bool = True
    prior_weight: float = 1.0
    masked_loss: bool = False
    loss: str = "plain"
    focus_weight: float = 1.0
    epochs: int = 0
    repeats: int = 100
    projection: str = "fixed"
    seed: int = 0
    precision: str = "auto"
    checkpointing: bool = False
    preview_every: int = 10
    resume: bool = True

    def resolved(self, photos: int = 1) -> "SubjectSettings":
        """The same with the preset's values, the epochs' steps, its alpha, and nothing left to resolve."""
        chosen = replace(self, **PRESETS[self.preset], preset="custom")
        if chosen.epochs:
            views = photos * chosen.repeats * chosen.epochs
            chosen = replace(chosen, steps=-(-views // (chosen.batch * chosen.accumulation)), epochs=0)
        return replace(chosen, alpha=chosen.alpha or float(chosen.rank))
