"""Reads the queries and keys of a UNet's attention while it runs, whatever backend computes it."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .attention_layers import Grid
from .unet_blocks import EXTRA_CALL, BlockKey

OVERRIDE = "optimized_attention_override"


@dataclass(frozen=True)
class Seen:
    """One attention of the watched rows. kind: `self` or `cross`. queries, keys: (B, tokens, heads * d)."""

    kind: str
    layer: BlockKey
    grid: Grid
    queries: Tensor
    keys: Tensor
    heads: int


def watch_attention(
    model: ModelPatcher,
    layers: Collection[BlockKey],
    report: Callable[[Seen], None],
    kinds: str = "self cross",
    rows: int | None = 1,
) -> ModelPatcher:
    """A clone of the model that reports what the chosen layers attend to and computes what the model computes.

    rows: of the batch, from the first; None for all of them.
    Each layer reports at most once per forward and kind. One whose tokens another patch merges or adds to is not
    reported. Another pack's override and replacements are called as before.
    """
    watcher = _Watcher(frozenset(layers), kinds.split(), report, rows)
    watched = model.clone()
    # The host does not tell an override whether it computes self- or cross-attention; these patches know.
    watched.set_model_attn1_patch(watcher.before_self)
    watched.set_model_attn2_patch(watcher.before_cross)
    options = watched.model_options["transformer_options"]
    options[OVERRIDE] = watcher.override(options.get(OVERRIDE))
    # A replacement may compute its attention by itself, out of the override's sight.
    for name in ("attn1", "attn2"):
        replacements = options.get("patches_replace", {}).get(name, {})
        replacements.update({key: _Replacement(one, watcher) for key, one in replacements.items()})
    return watched


class _Watcher:
    def __init__(
        self, layers: frozenset[BlockKey], kinds: list[str], report: Callable[[Seen], None], rows: int | None
    ) -> None:
        self.layers, self.kinds, self.report, self.rows = layers, kinds, report, rows
        self.expected: tuple[str, BlockKey, Grid] | None = None

    def before_self(self, n: Tensor, context: Tensor, value: Tensor, step: dict) -> tuple[Tensor, Tensor, Tensor]:
        self._expect("self", step)
        return n, context, value

    def before_cross(self, n: Tensor, context: Tensor, value: Tensor, step: dict) -> tuple[Tensor, Tensor, Tensor]:
        self._expect("cross", step)
        return n, context, value

    def override(self, previous: Callable | None) -> Callable:
        def attend(function: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Any:
            if not (kwargs.get("transformer_options") or {}).get(EXTRA_CALL):
                self.see(q, k, heads)
            if previous is None:
                return function(q, k, v, heads, *args, **kwargs)
            return previous(function, q, k, v, heads, *args, **kwargs)

        return attend

    def see(self, queries: Tensor, keys: Tensor, heads: int) -> None:
        if self.expected is None:
            return
        (kind, layer, grid), self.expected = self.expected, None
        tokens = grid[0] * grid[1]
        if queries.shape[1] == tokens and (kind == "cross" or keys.shape[1] == tokens):
            rows = slice(self.rows)
            self.report(Seen(kind, layer, grid, queries[rows].detach(), keys[rows].detach(), heads))

    def _expect(self, kind: str, step: dict) -> None:
        layer = (*step["block"], step["block_index"])
        wanted = kind in self.kinds and layer in self.layers
        self.expected = (kind, layer, tuple(step["activations_shape"][2:])) if wanted else None


class _Replacement:
    """Another pack's replacement of an attention, seen and then called; everything else about it is its own."""

    def __init__(self, replacement: Callable, watcher: _Watcher) -> None:
        self.replacement, self.watcher = replacement, watcher

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, step: dict) -> Tensor:
        self.watcher.see(q, k, step["n_heads"])
        return self.replacement(q, k, v, step)

    def to(self, *args: Any) -> "_Replacement":
        if hasattr(self.replacement, "to"):
            self.replacement = self.replacement.to(*args)
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.replacement, name)
