import torch
from comfy_api.latest import io

from ..host.inversion import invert_image
from .sockets import Trajectory

PRECISIONS = {"half": torch.float16, "full": torch.float32}


class InvertImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayInvertImage",
            display_name="Invert Image",
            category="inlay/paint",
            description="Finds the noise from which the model draws this picture, and every latent on the way "
            "(DDIM inversion), so that painting can keep its background exactly.",
            search_aliases=["DDIM inversion", "unsampler", "noise inversion", "trajectory", "Spin"],
            inputs=[
                io.Model.Input("model", tooltip="The model that will paint: SD1.x, SD2.x (eps or v), SDXL."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.Image.Input("image", tooltip="One picture or a batch, of any size."),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="Best an empty prompt, encoded. Unconnected, the text is replaced by zeros.",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="Visit these noise levels instead of `steps` of the normal schedule. Any order.",
                ),
                io.Int.Input("steps", default=50, min=1, max=1000, tooltip="Model calls. More is more faithful."),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Guidance of `positive` against zeros. 1 inverts faithfully and costs half.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="half",
                    advanced=True,
                    tooltip="Of the latents kept in memory. The clean latent is always kept in full.",
                ),
            ],
            outputs=[
                Trajectory.Output(
                    "trajectory", display_name="trajectory", tooltip="All latents by noise level, for this run."
                ),
                io.Latent.Output(
                    "latent",
                    display_name="latent",
                    tooltip="The end of the path: sample it without added noise to redraw.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model, vae, image, steps, cfg, precision="half", positive=None, sigmas=None) -> io.NodeOutput:
        trajectory, end = invert_image(
            model, vae, image, positive=positive, sigmas=sigmas, steps=steps, cfg=cfg, precision=PRECISIONS[precision]
        )
        return io.NodeOutput(trajectory, {"samples": end})


NODES = [InvertImage]
