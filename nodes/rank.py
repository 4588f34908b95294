from comfy_api.latest import io

from ..host.ranking import rank_pictures, score_pictures


class Rank(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayRank",
            display_name="Rank Pictures",
            category="inlay/measure",
            description="Sorts a batch of pictures by how well they show some words, or resemble a reference picture.",
            search_aliases=["best of n", "CLIP score", "sort images", "pick best", "select candidates"],
            inputs=[
                io.Image.Input("images", tooltip="The candidates, one batch."),
                io.ClipVision.Input("clip_vision", tooltip="The eye: CLIP's vision model, or DINOv2 for a reference."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder of the same CLIP, with its text_projection. Needed for words only.",
                ),
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="What the best picture shows. May be empty.",
                ),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="What the best picture resembles. Several pictures count equally.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where to look: the square around the white part, of any size with the pictures' aspect.",
                ),
                io.Int.Input(
                    "keep", default=1, min=0, max=4096, tooltip="How many of the best to return. 0 returns all."
                ),
                io.Combo.Input(
                    "outside",
                    options=["grey", "keep"],
                    default="grey",
                    advanced=True,
                    tooltip="What is seen around the mask: grey shows the masked content alone, keep its surroundings.",
                ),
            ],
            outputs=[
                io.Image.Output("images", display_name="images", tooltip="The best pictures, best first."),
                io.Float.Output(
                    "scores",
                    display_name="scores",
                    is_output_list=True,
                    tooltip="The cosine of each returned picture, -1 to 1. Comparable within one CLIP only.",
                ),
                io.Int.Output(
                    "indices",
                    display_name="indices",
                    is_output_list=True,
                    tooltip="Where each returned picture stood in the batch, from 0.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, images, clip_vision, keep, clip=None, text="", reference=None, mask=None, outside="grey"
    ) -> io.NodeOutput:
        scores = score_pictures(images, clip_vision, clip, text, reference, mask, outside)
        return io.NodeOutput(*rank_pictures(images, scores, keep))


NODES = [Rank]
