from comfy_api.latest import io

from ..host.lora_files import lora_files, lora_stamp, read_lora
from ..host.subject_loading import WAYS, load_subject, subject_conditioning
from .sockets import ReferenceEncoder

CONNECTED = "(the connected one)"


class LoadSubject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayLoadSubject",
            display_name="Load Subject",
            category="inlay/paint",
            description="Puts a trained subject on its base model and makes the conditioning that asks for it.",
            search_aliases=["lora loader", "load lora", "apply subject", "dreambooth"],
            inputs=[
                io.Model.Input("model", tooltip="The model that the subject was trained on."),
                io.Combo.Input(
                    "lora_file",
                    options=[CONNECTED, *lora_files()],
                    default=CONNECTED,
                    tooltip="A file of the loras folder, for when `lora` is not connected.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How much of the subject. 0 is the plain model, bit for bit.",
                ),
                io.LoraModel.Input("lora", optional=True, tooltip="From Train Subject. Takes the place of lora_file."),
                ReferenceEncoder.Input(
                    "reference_encoder", optional=True, tooltip="With clip_vision and reference: makes positive."
                ),
                io.ClipVision.Input("clip_vision", optional=True, tooltip="The encoder's own CLIP vision model."),
                io.Image.Input("reference", optional=True, tooltip="A picture of the subject, filling most of it."),
                io.Mask.Input(
                    "reference_mask",
                    optional=True,
                    tooltip="White on the subject: a square around it, 1.15 times its longer side, is cut out of a "
                    "larger picture, as Train Subject does.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="For a subject of mode text: positive is then the prompt that it was trained under.",
                ),
                io.Combo.Input(
                    "way",
                    options=list(WAYS),
                    default="weights",
                    optional=True,
                    advanced=True,
                    tooltip="weights: added to the model's weights. bypass: added to the layers' outputs, for "
                    "quantised models.",
                ),
                io.Boolean.Input(
                    "other_weights",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Also take a model of the same shapes with other weights, such as a fine-tune of the base.",
                ),
            ],
            outputs=[
                io.Model.Output("model", display_name="model", tooltip="The model that knows the subject."),
                io.Conditioning.Output("positive", display_name="positive", tooltip="Asks for the subject."),
                io.Conditioning.Output("negative", display_name="negative", tooltip="Asks for nothing in particular."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_file=CONNECTED, **_) -> object:
        # A subject trained again under its name is another one.
        return lora_stamp(lora_file)

    @classmethod
    def execute(
        cls, model, lora_file, strength, lora=None, reference_encoder=None, clip_vision=None, reference=None,
        reference_mask=None, clip=None, way="weights", other_weights=False,
    ) -> io.NodeOutput:  # fmt: skip
        if lora is None and lora_file == CONNECTED:
            raise ValueError("There is no subject to load. Connect lora, or choose a lora_file.")
        lora = read_lora(lora_file) if lora is None else lora
        patched = load_subject(model, lora, strength, way, other_weights)
        parts = reference_encoder, clip_vision, reference, clip, reference_mask
        return io.NodeOutput(patched, *subject_conditioning(model, lora, *parts))


NODES = [LoadSubject]
