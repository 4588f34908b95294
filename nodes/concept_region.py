from comfy_api.latest import io

from ..host.concept_region_patch import OUTSIDES, ROWS, add_concept_region


class ConceptRegion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayConceptRegion",
            display_name="Put Concept In Box",
            category="inlay/swap",
            description="Makes the model attend to one phrase alone inside a box, whatever the prompt says "
            "(InstantSwap's SECR).",
            search_aliases=["SECR", "InstantSwap", "regional prompt", "concept region", "cross-attention box"],
            inputs=[
                io.Model.Input("model", tooltip="An SD1.x, SD2.x or SDXL model, with any patches already on it."),
                io.Conditioning.Input(
                    "concept",
                    tooltip="The phrase that acts in the box, alone: one encoded text. An empty text is allowed.",
                ),
                io.Mask.Input(
                    "mask", tooltip="The box around its white part is the region. Drawn on the picture that is sampled."
                ),
                io.BoundingBox.Input(
                    "bbox",
                    optional=True,
                    force_input=True,
                    socketless=False,
                    tooltip="Takes the place of the box around the mask, in the mask's pixels. One box a picture.",
                ),
                io.Combo.Input(
                    "outside",
                    options=list(OUTSIDES),
                    default="ca",
                    tooltip="Outside the box. ca: the prompt acts as ever. raw: no text acts, as in the authors' code.",
                ),
                io.Combo.Input(
                    "rows",
                    options=list(ROWS),
                    default="both",
                    optional=True,
                    advanced=True,
                    tooltip="both: the negative attends to the phrase too, as in the authors' code, so that cfg hardly "
                    "acts in the box. conditional: cfg strengthens the phrase.",
                ),
            ],
            outputs=[io.Model.Output("model", display_name="model", tooltip="The model with the region on it.")],
        )

    @classmethod
    def execute(cls, model, concept, mask, outside, bbox=None, rows="both") -> io.NodeOutput:
        return io.NodeOutput(add_concept_region(model, concept, mask, bbox, outside, rows))


NODES = [ConceptRegion]
