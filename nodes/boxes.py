from comfy_api.latest import io

from ..attention.overlay import overlay
from ..host.attention_layers import LAYERS
from ..host.find_box import OUTLINES, find_boxes
from .widgets import seed_widget


class FindBox(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayFindBox",
            display_name="Find Box",
            category="inlay/mask",
            description="Finds a named thing in a picture by the model's own attention and draws a box around it.",
            search_aliases=["bounding box", "detect", "attention box", "locate", "bbox", "grounding"],
            inputs=[
                io.Model.Input("model", tooltip="An SD1.x, SD2.x or SDXL model. It is left as it is."),
                io.Clip.Input("clip", tooltip="The model's text encoder."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.Image.Input("image", tooltip="The pictures to look at, of any size."),
                io.String.Input(
                    "prompt", default="", multiline=True, tooltip="A sentence about the picture that names the thing."
                ),
                io.String.Input(
                    "concept",
                    default="",
                    tooltip="The thing: words as they stand in the prompt, or embedding:name; commas between several.",
                ),
                io.Float.Input(
                    "alpha",
                    default=2.0,
                    min=0.1,
                    max=8.0,
                    step=0.1,
                    tooltip="For outline words: power of the word's map before it is spread. Higher is narrower.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.5,
                    min=0.01,
                    max=10.0,
                    step=0.01,
                    tooltip="Share of the strongest response that still belongs to the thing. For a salient part: "
                    "deviations above the picture's average.",
                ),
                io.Int.Input(
                    "passes",
                    default=3,
                    min=1,
                    max=32,
                    tooltip="Looks at the picture, noised to timesteps evenly from 500 to 100. The box holds "
                    "what any of them finds. For outline words.",
                ),
                io.Int.Input(
                    "margin", default=0, min=0, max=4096, tooltip="Pixels added on each side, up to the picture's edge."
                ),
                io.Combo.Input(
                    "layer",
                    options=list(LAYERS),
                    default="16x16",
                    optional=True,
                    advanced=True,
                    tooltip="For outline words: whose attention. 16x16 is the paper's, by the number of tokens a side.",
                ),
                io.Boolean.Input(
                    "self_attention",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="For outline words: spread the word's map over what belongs together. Off leaves it alone.",
                ),
                io.Boolean.Input(
                    "stretch",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="For outline words: subtract each map's least value first, for maps that are nearly flat.",
                ),
                io.Combo.Input(
                    "outline",
                    options=list(OUTLINES),
                    default=OUTLINES[0],
                    optional=True,
                    advanced=True,
                    tooltip="words: around where they act (paper). salient part: around what stands out from the "
                    "picture's border, where they tell the model most.",
                ),
                seed_widget("Of the noise. Every picture of a batch gets the same.", optional=True, advanced=True),
            ],
            outputs=[
                io.Mask.Output("mask", display_name="mask", tooltip="The box of each picture: 1 inside, 0 elsewhere."),
                io.BoundingBox.Output("bbox", display_name="bbox", tooltip="The first picture's box, in pixels."),
                io.BoundingBox.Output(
                    "bboxes", display_name="bboxes", tooltip="One list of boxes per picture, here of one box each."
                ),
                io.Mask.Output(
                    "soft_mask",
                    display_name="soft_mask",
                    tooltip="The map behind the box, 0 to 1: the mean of the passes, or what stands out in the box.",
                ),
                io.Image.Output("preview", display_name="preview", tooltip="The map and the box on the picture."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        clip,
        vae,
        image,
        prompt,
        concept,
        alpha,
        threshold,
        passes,
        margin,
        layer="16x16",
        self_attention=True,
        stretch=False,
        outline=OUTLINES[0],
        seed=0,
    ) -> io.NodeOutput:
        found = find_boxes(
            *(model, clip, vae, image, prompt, concept),
            *(alpha, threshold, passes, margin, layer, self_attention, seed, stretch, outline),
        )
        bboxes = [[box] for box in found.boxes]
        return io.NodeOutput(found.mask, found.boxes[0], bboxes, found.soft, overlay(image, found.soft, found.mask))


NODES = [FindBox]
