from comfy_api.latest import io

from ..host.region_patches import Region, guide_region
from ..host.regions import empty_text, text_of_conditioning
from .widgets import range_widgets


class RegionGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayRegionGuidance",
            display_name="Guide Region",
            category="inlay/paint",
            description="Lets the prompt act inside the mask only, on an object that knows where its place ends "
            "(Spin's attention-based region guidance).",
            search_aliases=["ARG", "Spin", "regional prompt", "attention couple", "attention mask", "inpaint"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="An SD1.x, SD2.x, SDXL or PixArt model, with any patches already on it. Chain several of "
                    "these nodes for several regions.",
                ),
                io.Mask.Input(
                    "mask",
                    tooltip="Where the text acts: white inside. Any size with the picture's aspect; one mask, or one "
                    "for each picture of the batch.",
                ),
                io.Conditioning.Input(
                    "region",
                    optional=True,
                    tooltip="What goes into the mask. Without it, the sampler's positive does.",
                ),
                io.Combo.Input(
                    "outside",
                    options=["zero", "null", "text"],
                    default="zero",
                    tooltip="What the rest of the picture reads: nothing (zero, as in the paper), the empty text (null "
                    "with clip), or text: outside_text. Of several chained nodes the last one decides.",
                ),
                io.Clip.Input("clip", optional=True, tooltip="Encodes the empty text for null. Otherwise not needed."),
                io.Conditioning.Input(
                    "outside_text",
                    optional=True,
                    tooltip="What the rest of the picture reads with outside = text. Without it, the sampler's "
                    "positive.",
                ),
                *range_widgets(
                    "From which part of sampling on the region is guided, 0 to 1.",
                    "Up to which part of sampling the region is guided, 0 to 1.",
                ),
            ],
            outputs=[io.Model.Output("model", display_name="model", tooltip="The guided model, for any sampler.")],
        )

    @classmethod
    def execute(
        cls, model, mask, outside, start_percent, end_percent, region=None, clip=None, outside_text=None
    ) -> io.NodeOutput:
        guided = guide_region(
            model,
            [Region(mask, None if region is None else text_of_conditioning(region))],
            outside,
            null_text=None if clip is None else empty_text(clip),
            outside_text=None if outside_text is None else text_of_conditioning(outside_text),
            start_percent=start_percent,
            end_percent=end_percent,
        )
        return io.NodeOutput(guided)


NODES = [RegionGuidance]
