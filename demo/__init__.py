"""The demo world: procedural pictures whose truth is known, and the tiny models trained on them."""
