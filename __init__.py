"""Inlay sets a subject into a picture so that it belongs there: a ComfyUI node pack."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> "ComfyExtension":
    from comfy_api.latest import ComfyExtension

    from .nodes import all_nodes

    class Inlay(ComfyExtension):
        async def get_node_list(self) -> list[type]:
            return all_nodes()

    return Inlay()
