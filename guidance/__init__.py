"""What steers sampling, in tensors only: masks, backgrounds, samplers, losses."""
