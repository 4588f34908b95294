from comfy_api.latest import io

from ..host.embedding_files import IF_EXISTS
from ..host.subject_folder import folder_stamp
from ..host.subject_telling import Teller
from ..host.subject_training import Photos, train_subject
from ..training.subject_settings import MODES, PRESETS, SubjectSettings
from .sockets import ReferenceEncoder
from .subject_options import rare_inputs
from .widgets import seed_widget


class TrainSubject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayTrainSubject",
            display_name="Train Subject",
            category="inlay/train",
            description="Learns a thing from two to four photos as a LoRA of a few megabytes.",
            search_aliases=["LoRA", "dreambooth", "subject", "train lora", "fine-tune", "Paint-by-Example"],
            is_input_list=True,
            inputs=[
                io.Model.Input("model", tooltip="For inpaint a 9-channel inpainting model. It is left as it is."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.String.Input("name", default="my-subject", tooltip="The file's name in the loras folder."),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="inpaint",
                    tooltip="inpaint: told by a reference picture, needs clip_vision and reference_encoder. "
                    "text: told by a prompt with a rare word, needs clip.",
                ),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default="fast",
                    tooltip="paper: 1000 steps of 16 at 3e-5. fast: 300 steps of 4 at 2e-4. custom: steps, "
                    "learning_rate, batch and accumulation as set below, which the other presets ignore.",
                ),
                io.Int.Input(
                    "rank",
                    default=16,
                    min=1,
                    max=1024,
                    tooltip="Size of the LoRA. For SD1.5, 4 to 64 are 2 to 38 MB in mode inpaint, 3 to 51 MB in text.",
                ),
                io.Int.Input(
                    "steps",
                    default=300,
                    min=1,
                    max=1000000,
                    tooltip="Updates. Only with preset custom; the others have their own.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=3e-5,
                    min=0.0,
                    max=1.0,
                    step=1e-6,
                    round=1e-8,
                    tooltip="Of AdamW. Only with preset custom; 1e-4 is common for LoRAs.",
                ),
                io.Int.Input("batch", default=4, min=1, max=256, tooltip="Views a forward. Only with preset custom."),
                io.Int.Input(
                    "accumulation", default=1, min=1, max=256, tooltip="Forwards an update. Only with preset custom."
                ),
                io.Int.Input(
                    "resolution", default=512, min=64, max=2048, step=8, tooltip="Pixels a side that the model is for."
                ),
                seed_widget("The same seed gives the same file on one machine; on a GPU up to rounding."),
                io.Combo.Input(
                    "if_exists",
                    options=list(IF_EXISTS),
                    default="number",
                    tooltip="When there is a LoRA of that name. number: save as name-2. overwrite: replace it. "
                    "error: stop before training.",
                ),
                io.Image.Input(
                    "images", optional=True, tooltip="Photos of the thing: a batch, or a list of pictures of any sizes."
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="White on the thing, one a photo or one for all. Where it stands is needed.",
                ),
                io.BoundingBox.Input(
                    "boxes",
                    optional=True,
                    force_input=True,
                    socketless=False,
                    tooltip="Instead of masks, from Find Box's `bboxes` or a detector: one list a photo, of which the "
                    "largest box counts.",
                ),
                io.ClipVision.Input(
                    "clip_vision", optional=True, tooltip="For mode inpaint: the encoder's CLIP vision model."
                ),
                ReferenceEncoder.Input(
                    "reference_encoder", optional=True, tooltip="For mode inpaint: what tells the model the reference."
                ),
                io.Clip.Input(
                    "clip", optional=True, tooltip="For mode text: the model's text encoder. It is not trained."
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="For mode text: names the thing by a rare word, as in a photo of sks couch. One line, or "
                    "one for each photo; of a list of texts each is a line.",
                ),
                io.Image.Input(
                    "class_images",
                    optional=True,
                    tooltip="For mode text: other things of its kind, which the model is to keep (prior preservation).",
                ),
                io.String.Input(
                    "class_prompt", default="", optional=True, tooltip="What they show, as in a photo of a couch."
                ),
                *rare_inputs(),
            ],
            outputs=[
                io.LoraModel.Output("lora", display_name="lora", tooltip="For Load Subject; it is saved already."),
                io.LossMap.Output(
                    "loss_map", display_name="loss_map", tooltip="The loss of each step, for Plot Loss Graph."
                ),
                io.Image.Output(
                    "preview",
                    display_name="preview",
                    tooltip="Some views as they were trained on, with their holes and references.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder=("",), **_) -> object:
        # A folder with other pictures in it is another one.
        return folder_stamp(folder[0].strip()) if folder[0] else None

    @classmethod
    def execute(
        cls, model, vae, name, if_exists, images=(), masks=(), boxes=None, clip_vision=(None,),
        reference_encoder=(None,), clip=(None,), class_images=(), folder=("",), **settings,
    ) -> io.NodeOutput:  # fmt: skip
        texts = {key: _lines(settings.pop(key)) for key in ("prompt", "class_prompt") if key in settings}
        trained = train_subject(
            model[0],
            vae[0],
            Photos(images, masks, boxes, class_images, folder[0].strip()),
            name[0],
            SubjectSettings(**{key: values[0] for key, values in settings.items()}, **texts),
            Teller(reference_encoder[0], clip_vision[0], clip[0]),
            if_exists[0],
        )
        return io.NodeOutput(trained.lora, {"loss": trained.losses}, trained.preview)


def _lines(texts: list[str]) -> str:
    """A list of captions as one text with a line for each; a single text may have several lines of its own."""
    return texts[0] if len(texts) == 1 else "\n".join(" ".join(text.splitlines()) for text in texts)


NODES = [TrainSubject]
