from comfy_api.latest import io

from ..host.reference_conditioning import reference_conditioning
from ..host.reference_files import ORDERS, load_reference_files, reference_files, stamps
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
                    tooltip="White on the thing: a square around it, 1.15 times its longer side, is cut out of a "
                    "larger picture, as Train Subject does.",
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


class LoadReferenceModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        files = reference_files()
        return io.Schema(
            node_id="InlayLoadReferenceModel",
            display_name="Load Reference Model",
            category="inlay/paint",
            description="Loads Paint-by-Example's UNet and the mapper that tells it a reference, from safetensors.",
            search_aliases=["Paint-by-Example", "exemplar", "reference inpainting", "load checkpoint"],
            inputs=[
                io.Combo.Input(
                    "model_file",
                    options=files,
                    tooltip="Paint-by-Example's checkpoint, or its UNet in diffusers' form.",
                ),
                io.Combo.Input(
                    "encoder_file",
                    options=reference_files(own=True),
                    tooltip="The same checkpoint, the image encoder of diffusers, or a LoRA whose projection Train "
                    "Subject has trained.",
                ),
                io.Combo.Input(
                    "order",
                    options=list(ORDERS),
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip="Of the extra channels. paint-by-example: masked picture, then a mask that is 1 where "
                    "it is kept. host: mask, 1 where it is filled, then masked picture. auto: by what the files hold; "
                    "a checkpoint with a text encoder is the host's.",
                ),
            ],
            outputs=[
                io.Model.Output("model", display_name="model", tooltip="The inpainting UNet."),
                ReferenceEncoder.Output(
                    "reference_encoder", display_name="reference_encoder", tooltip="For Tell By Reference."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, model_file="", encoder_file="", **_) -> object:
        return stamps(model_file, encoder_file)

    @classmethod
    def execute(cls, model_file, encoder_file, order="auto") -> io.NodeOutput:
        return io.NodeOutput(*load_reference_files(model_file, encoder_file, order))


NODES = [ReferenceConditioning, LoadReferenceModel]
