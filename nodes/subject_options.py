"""The rare inputs of Train Subject."""

from comfy_api.latest import io

from ..host.lora_training import TARGETS
from ..training.mask_augmentation import MASKS
from ..training.subject_settings import LOSSES, PROJECTIONS
from .widgets import checkpointing_widget, precision_widget


def rare_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "prior_weight",
            default=1.0,
            min=0.0,
            max=100.0,
            step=0.05,
            optional=True,
            advanced=True,
            tooltip="How much the class images count against the photos.",
        ),
        io.Float.Input(
            "alpha",
            default=0.0,
            min=0.0,
            max=1024.0,
            step=0.5,
            optional=True,
            advanced=True,
            tooltip="The LoRA counts alpha / rank. 0: as much as the rank.",
        ),
        io.Float.Input(
            "dropout",
            default=0.0,
            min=0.0,
            max=0.9,
            step=0.05,
            optional=True,
            advanced=True,
            tooltip="Share of the LoRA's inputs left out in training.",
        ),
        io.Combo.Input(
            "targets",
            options=["auto", *TARGETS],
            default="auto",
            optional=True,
            advanced=True,
            tooltip="Layers that learn. auto: `one token` for inpaint, `attention` for text.",
        ),
        io.Float.Input(
            "condition_dropout",
            default=0.2,
            min=0.0,
            max=1.0,
            step=0.05,
            optional=True,
            advanced=True,
            tooltip="Share of the views trained without being told anything, for cfg.",
        ),
        io.Combo.Input(
            "mask_augmentation",
            options=list(MASKS),
            default="paper",
            optional=True,
            advanced=True,
            tooltip="Holes to fill. none: the box. grown: larger boxes. bezier: round ones. paper: these two. "
            "All but none also cut random squares out of the photo.",
        ),
        io.Boolean.Input(
            "reference_augmentation",
            default=True,
            optional=True,
            advanced=True,
            tooltip="Mirror, turn and blur the reference, never the photo.",
        ),
        io.Int.Input(
            "views",
            default=32,
            min=1,
            max=4096,
            optional=True,
            advanced=True,
            tooltip="Augmented views a photo, encoded once before training.",
        ),
        io.Boolean.Input(
            "masked_loss",
            default=False,
            optional=True,
            advanced=True,
            tooltip="Only the thing counts, not what is around it. Takes the masks or boxes.",
        ),
        precision_widget("What the UNet computes in; the LoRA is always fp32."),
        checkpointing_widget(),
        io.Int.Input(
            "preview_every",
            default=10,
            min=0,
            max=100000,
            optional=True,
            advanced=True,
            tooltip="Steps between live previews of what is trained on. 0: none.",
        ),
        io.Boolean.Input(
            "resume",
            default=True,
            optional=True,
            advanced=True,
            tooltip="Go on where a cancelled run of the same name stopped; its recipe has to be the same.",
        ),
        io.String.Input(
            "folder",
            default="",
            optional=True,
            advanced=True,
            tooltip="Instead of images: a folder in the input folder with many pictures of a kind, to adapt "
            "the model to them before it learns a thing. Read as needed; broken ones are skipped.",
        ),
        io.Int.Input(
            "epochs",
            default=0,
            min=0,
            max=100000,
            optional=True,
            advanced=True,
            tooltip="Above 0 instead of steps, of presets too: so often over all photos, each `repeats` times.",
        ),
        io.Int.Input(
            "repeats",
            default=100,
            min=1,
            max=100000,
            optional=True,
            advanced=True,
            tooltip="Views of each photo an epoch.",
        ),
        io.Combo.Input(
            "loss",
            options=list(LOSSES),
            default="plain",
            optional=True,
            advanced=True,
            tooltip="For mode text. saliency focus: what is salient, or white in the masks, counts more.",
        ),
        io.Float.Input(
            "focus_weight",
            default=1.0,
            min=0.0,
            max=100.0,
            step=0.05,
            optional=True,
            advanced=True,
            tooltip="How much the saliency focus counts beside the plain loss.",
        ),
        io.Combo.Input(
            "projection",
            options=list(PROJECTIONS),
            default="fixed",
            optional=True,
            advanced=True,
            tooltip="For mode inpaint. trained: the reference encoder learns too and is kept in the file; "
            "without a connected one a new one does.",
        ),
    ]
