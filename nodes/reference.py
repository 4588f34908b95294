from comfy_api.latest import io

from ..host.reference_conditioning import reference_conditioning
from .sockets import ReferenceEncoder


class ReferenceConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayReferenceConditioning",
            display_name="Tell By Reference",
            category="inlay/paint",
            description="Tells an inpainting model what to paint by a picture instead of by words.",
            search_aliases=["Paint-by-Example", "image prompt", "exemplar", "reference image", "clip vision encode"],
            inputs=[
                ReferenceEncoder.Input(
                    "reference_encoder", tooltip="From Load Demo Models or Load Reference Model; goes with the model."
                ),
                io.ClipVision.Input("clip_vision", tooltip="The CLIP vision model that the encoder was trained with."),
                io.Image.Input(
                    "reference", tooltip="The thing, filling most of the picture. A batch gives one row each."
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White on the thing: it is cut out of a larger picture, as in training.",
                ),
            ],
            outputs=[
                io.Conditioning.Output("positive", display_name="positive", tooltip="The reference, one token."),
                io.Conditioning.Output(
                    "negative", display_name="negative", tooltip="The learned token that stands for no reference."
                ),
            ],
        )

    @classmethod
    def execute(cls, reference_encoder, clip_vision, reference, mask=None) -> io.NodeOutput:
        return io.NodeOutput(*reference_conditioning(reference_encoder, clip_vision, reference, mask))


NODES = [ReferenceConditioning]
