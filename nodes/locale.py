"""The English locale of the pack, out of the nodes' own schemas: translators start from it."""

from typing import Any


def node_definitions(nodes: list[type]) -> dict[str, Any]:
    """What locales/en/nodeDefs.json holds."""
    return {schema.node_id: _definition(schema) for schema in (node.define_schema() for node in nodes)}


def _definition(schema: Any) -> dict[str, Any]:
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {socket.id: _socket(socket.display_name or socket.id, socket.tooltip) for socket in schema.inputs},
        "outputs": {
            str(index): _socket(socket.display_name or socket.id, socket.tooltip)
            for index, socket in enumerate(schema.outputs)
        },
    }


def _socket(name: str, tooltip: str | None) -> dict[str, str]:
    return {"name": name, "tooltip": tooltip or ""}
