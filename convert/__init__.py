"""The conversion script: a thin front on trocr_jax.checkpoints, and the comparison with PyTorch."""
