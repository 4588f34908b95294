from comfy_api.latest import io

from ..guidance.paste import COLOUR_MATCHES, paste_pictures
from .widgets import feather_widget


class PasteBack(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayPasteBack",
            display_name="Paste Back",
            category="inlay/paint",
            description="Puts an edited picture into the original: outside the mask every pixel stays exactly as it "
            "was, inside it the edit begins softly.",
            search_aliases=["composite", "image composite masked", "stitch", "restore background", "seam"],
            inputs=[
                io.Image.Input("original", tooltip="The picture whose pixels stay outside the mask."),
                io.Image.Input(
                    "edited", tooltip="The picture to put inside the mask. Another size of the same aspect is resized."
                ),
                io.Mask.Input("mask", tooltip="White: the edit. Black: the original, bit for bit. Soft values mix."),
                feather_widget("Pixels over which the edit begins, inside the mask only. 0: a hard edge."),
                io.Combo.Input(
                    "colour_match",
                    options=list(COLOUR_MATCHES),
                    default="none",
                    tooltip="Brings the edit's colours to the original's, as the 8 pixels around the mask tell them. "
                    "smooth: the local difference. mean_std: brightness and contrast of each channel.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "image",
                    display_name="image",
                    tooltip="The original with the edit in it.",
                ),
                io.Image.Output(
                    "seam",
                    display_name="seam",
                    tooltip="The mask's border in red, brighter where the picture jumps there.",
                ),
            ],
        )

    @classmethod
    def execute(cls, original, edited, mask, feather, colour_match) -> io.NodeOutput:
        return io.NodeOutput(*paste_pictures(original, edited, mask, feather, colour_match))


NODES = [PasteBack]
