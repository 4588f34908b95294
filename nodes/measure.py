from comfy_api.latest import io

from ..host.measuring import NAMES, Subject, measure, report

_MEANING = {
    "psnr": "Peak signal to noise ratio against the original, dB; more is closer, infinite is equal.",
    "ssim": "Structural similarity to the original, up to 1.",
    "mse": "Mean squared error against the original, of values in 0 to 1.",
    "lpips": "LPIPS against the original, with the net under models/lpips; less is closer.",
    "clip_i": "CLIP's cosine between the pictures and the reference pictures.",
    "clip_t": "CLIP's cosine between the pictures and the text.",
    "dino": "DINOv2's cosine between the pictures and the reference pictures.",
    "fid": "Frechet distance to the reference pictures over the features of clip_vision, for large batches.",
}


class Measure(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayMeasure",
            display_name="Measure Pictures",
            category="inlay/measure",
            description="Measures what an edit kept and what it achieved, inside or outside its mask.",
            search_aliases=["PSNR", "SSIM", "MSE", "LPIPS", "CLIP score", "DINO", "FID", "metrics", "evaluate"],
            inputs=[
                io.Image.Input("images", tooltip="The pictures to measure; results are means over the batch."),
                io.Image.Input("original", optional=True, tooltip="The picture before: for PSNR, SSIM, MSE and LPIPS."),
                io.Mask.Input("mask", optional=True, tooltip="What was edited, white. Needed for inside and outside."),
                io.Image.Input(
                    "reference", optional=True, tooltip="Pictures of the subject: for CLIP-I, DINO and FID."
                ),
                io.Clip.Input("clip", optional=True, tooltip="The text encoder of clip_vision's CLIP: for CLIP-T."),
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="What the pictures should show: for CLIP-T.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="CLIP's vision model for CLIP-I and CLIP-T, or DINOv2 for DINO.",
                ),
                io.Combo.Input(
                    "region",
                    options=["whole", "inside", "outside"],
                    default="whole",
                    tooltip="Where to measure. Inside shows CLIP the square around the mask, the rest of it grey.",
                ),
                io.Combo.Input(
                    "lpips_net",
                    options=["vgg", "alex"],
                    default="vgg",
                    advanced=True,
                    tooltip="The net of LPIPS, from models/lpips. Values of different nets do not compare.",
                ),
            ],
            outputs=[
                *(
                    io.Float.Output(name, display_name=name, tooltip=f"{_MEANING[name]} NaN where the report says why.")
                    for name in NAMES
                ),
                io.String.Output("report", display_name="report", tooltip="One line per metric, with the reasons."),
            ],
        )

    @classmethod
    def execute(
        cls,
        images,
        region,
        original=None,
        mask=None,
        reference=None,
        clip=None,
        text="",
        clip_vision=None,
        lpips_net="vgg",
    ) -> io.NodeOutput:
        subject = Subject(images, original, mask, reference, clip, text, clip_vision, region, lpips_net)
        results = measure(subject)
        return io.NodeOutput(*(results[name].value for name in NAMES), report(results, subject))


NODES = [Measure]
