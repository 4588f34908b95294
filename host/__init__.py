"""Everything that touches ComfyUI's internals."""
