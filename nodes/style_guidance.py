from comfy_api.latest import io

from ..host.style_extractors import FEATURES
from ..host.style_guidance_patch import REGIONS, StyleOptions, guide_by_style
from .widgets import range_widgets, strength_unit_widget


class StyleGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayStyleGuidance",
            display_name="Guide by Style",
            category="inlay/paint",
            description="Draws what is painted towards the style of a picture, such as the scene it is painted into "
            "(Spin's style guidance). Works with any sampler.",
            search_aliases=["style guidance", "style transfer", "gram", "spin", "VGG"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="An SD1.x, SD2.x, SDXL or PixArt model, with any patches already on it."
                ),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                io.Image.Input(
                    "style_image", tooltip="The style: the scene itself, or any picture. One for each, or one."
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="The place being filled, for region masked and inside: white inside, the picture's aspect.",
                ),
                io.ClipVision.Input(
                    "extractor", optional=True, tooltip="Any CLIP_VISION, used where features is clip_vision."
                ),
                io.Float.Input(
                    "strength",
                    default=0.1,
                    min=0.0,
                    max=1000000.0,
                    step=0.01,
                    tooltip="Normalised: the share of the noise that each move changes. Raw: the paper's s.",
                ),
                io.Combo.Input(
                    "mode",
                    options=["fast", "exact"],
                    default="fast",
                    tooltip="Fast: gradient at the clean estimate. Exact: through the UNet, slower, far more memory.",
                ),
                io.Combo.Input(
                    "features",
                    options=list(FEATURES),
                    default="vae",
                    tooltip="What style is read from: the VAE's encoder (no file), VGG19 of models/vgg, or extractor.",
                ),
                io.Combo.Input(
                    "region",
                    options=list(REGIONS),
                    default="whole",
                    tooltip="Whole: all of both. Masked: inside the mask against outside. Inside: against all of it.",
                ),
                io.Int.Input(
                    "feature_size",
                    default=160,
                    min=0,
                    max=4096,
                    step=32,
                    advanced=True,
                    tooltip="Longer side in pixels at which vae and vgg look. 0 for the picture's own; dear.",
                ),
                strength_unit_widget("the paper's factor"),
                io.Int.Input(
                    "gradient_steps",
                    default=1,
                    min=1,
                    max=32,
                    advanced=True,
                    tooltip="Moves in each step of the sampler. The UNet still runs once.",
                ),
                *range_widgets(),
            ],
            outputs=[io.Model.Output("model", display_name="model", tooltip="The guided model, for any sampler.")],
        )

    @classmethod
    def execute(cls, model, vae, style_image, mask=None, extractor=None, **widgets) -> io.NodeOutput:
        options = StyleOptions(**widgets)
        return io.NodeOutput(guide_by_style(model, vae, style_image, mask, extractor, options))


NODES = [StyleGuidance]
