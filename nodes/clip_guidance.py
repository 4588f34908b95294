from comfy_api.latest import io

from ..host.clip_guidance_patch import ClipOptions, guide_by_clip
from .widgets import range_widgets, strength_unit_widget


class ClipGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayClipGuidance",
            display_name="Guide by CLIP",
            category="inlay/blend",
            description="Draws the masked place towards some words, or towards reference pictures, as CLIP sees them "
            "(Blended Diffusion). Works with any sampler.",
            search_aliases=["CLIP guidance", "blended diffusion", "local edit", "classifier guidance"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="An SD1.x, SD2.x, SDXL or PixArt model, with any patches already on it."
                ),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                io.ClipVision.Input("clip_vision", tooltip="CLIP's vision model, the other half of the text encoder."),
                io.Mask.Input("mask", tooltip="Where CLIP looks: white inside. Any size with the picture's aspect."),
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    tooltip="What the place should show. Empty: no guidance (removal).",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder of the same CLIP. Not needed for a reference alone.",
                ),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="Pictures the place should resemble, instead of words or beside them.",
                ),
                io.Image.Input("image", optional=True, tooltip="The picture being edited, for background_weight only."),
                io.Float.Input(
                    "strength",
                    default=0.1,
                    min=0.0,
                    max=100000.0,
                    step=0.01,
                    tooltip="Normalised: the share of the noise that changes. Raw: the weight of the loss, about 1000.",
                ),
                io.Combo.Input(
                    "mode",
                    options=["fast", "place", "exact"],
                    default="fast",
                    tooltip="Fast: gradient at the clean estimate. Place: the same, decoding only what is around the "
                    "mask. Exact: through the UNet, slower, far more memory.",
                ),
                io.Int.Input(
                    "augmentations",
                    default=8,
                    min=0,
                    max=64,
                    tooltip="Warped copies that CLIP sees beside the plain one. The authors found that guidance fools "
                    "CLIP less with them; each costs as much as the plain one.",
                ),
                io.Combo.Input(
                    "view",
                    options=["masked", "crop"],
                    default="masked",
                    tooltip="What CLIP sees: the whole picture, grey outside the mask, or the square around the mask.",
                ),
                strength_unit_widget("the paper's weight"),
                io.Combo.Input(
                    "distance",
                    options=["spherical", "cosine"],
                    default="spherical",
                    advanced=True,
                    tooltip="Of CLIP's embeddings: spherical as in the official code, cosine as in the paper.",
                ),
                io.Float.Input(
                    "range_weight",
                    default=0.05,
                    min=0.0,
                    max=100.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Against colours beyond white and black, relative to CLIP's distance.",
                ),
                io.Float.Input(
                    "background_weight",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Holds the picture outside the mask (algorithm 1, near 10). 0 where the sampler holds it.",
                ),
                io.Boolean.Input(
                    "mix",
                    default=True,
                    advanced=True,
                    tooltip="Let CLIP see more of the noisy picture and less of the estimate as the noise falls.",
                ),
                *range_widgets(),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The guided model, for any sampler.")],
        )

    @classmethod
    def execute(
        cls, model, vae, clip_vision, mask, text="", clip=None, reference=None, image=None, **widgets
    ) -> io.NodeOutput:
        options = ClipOptions(**widgets)
        return io.NodeOutput(guide_by_clip(model, vae, clip, clip_vision, text, reference, mask, image, options))


NODES = [ClipGuidance]
