"""A workflow in API format as a graph for the web page: columns from left to right along the wires."""

from typing import Any

API = dict[str, dict[str, Any]]
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
COLUMN, ROW_GAP, LINE, HEAD = 380, 60, 22, 40


def _is_wire(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def _inputs(definition: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """(name, type, options) in the order in which the page shows them."""
    found = []
    for group in ("required", "optional"):
        for name, spec in definition["input"].get(group, {}).items():
            kind = "COMBO" if isinstance(spec[0], list) else spec[0]
            found.append((name, kind, spec[1] if len(spec) > 1 else {}))
    return found


def _default(kind: str, spec: dict[str, Any], options: list | None) -> Any:
    if "default" in spec:
        return spec["default"]
    choices = options or spec.get("options")
    return choices[0] if choices else {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False}.get(kind, "")


def _columns(api: API) -> dict[str, int]:
    """How many wires lie between a node and the start of its longest path."""
    depth: dict[str, int] = {}

    def of(node: str) -> int:
        if node not in depth:
            sources = [value[0] for value in api[node]["inputs"].values() if _is_wire(value)]
            depth[node] = 1 + max((of(source) for source in sources), default=-1)
        return depth[node]

    for node in api:
        of(node)
    return depth


def to_graph(api: API, object_info: dict[str, Any]) -> dict[str, Any]:
    """api: a workflow for POST /prompt. object_info: what the host's /object_info says. Returns the page's format."""
    columns, heights = _columns(api), {}
    nodes, links = [], []
    outgoing: dict[tuple[str, int], list[int]] = {}
    for order, (key, step) in enumerate(sorted(api.items(), key=lambda item: (columns[item[0]], int(item[0])))):
        definition = object_info[step["class_type"]]
        inputs, values = [], []
        for name, kind, spec in _inputs(definition):
            given = step["inputs"].get(name)
            widget = kind in WIDGETS and not spec.get("forceInput")
            wired = _is_wire(given)
            socket: dict[str, Any] = {"name": name, "type": kind, "link": None}
            if widget:
                choices = definition["input"].get("required", {}).get(name, [None])[0]
                fallback = _default(kind, spec, choices if isinstance(choices, list) else None)
                values.append(fallback if wired or given is None else given)
                if spec.get("control_after_generate"):
                    values.append("fixed")
                socket["widget"] = {"name": name}
            if wired:
                source, slot = given
                link = len(links) + 1
                kind = object_info[api[source]["class_type"]]["output"][slot]
                links.append(
                    [link, int(source), slot, int(key), len(inputs), kind if isinstance(kind, str) else "COMBO"]
                )
                outgoing.setdefault((source, slot), []).append(link)
                socket["link"] = link
            if wired or not widget:
                inputs.append(socket)
        lines = max(len(inputs), len(definition["output"])) + 1.3 * len(values)
        height = round(HEAD + LINE * lines)
        top = heights.get(columns[key], 0)
        heights[columns[key]] = top + height + ROW_GAP
        nodes.append(
            {
                "id": int(key),
                "type": step["class_type"],
                "title": step.get("_meta", {}).get("title", definition["display_name"]),
                "pos": [columns[key] * COLUMN, top],
                "size": [COLUMN - 80, height],
                "flags": {},
                "order": order,
                "mode": 0,
                "inputs": inputs,
                "outputs": [],
                "properties": {"Node name for S&R": step["class_type"]},
                "widgets_values": values,
            }
        )
    for node in nodes:
        definition = object_info[node["type"]]
        names = definition.get("output_name") or definition["output"]
        node["outputs"] = [
            {
                "name": name,
                "type": kind if isinstance(kind, str) else "COMBO",
                "links": outgoing.get((str(node["id"]), slot), []),
            }
            for slot, (name, kind) in enumerate(zip(names, definition["output"], strict=True))
        ]
    return {
        "last_node_id": max(node["id"] for node in nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }
