"""`python -m trocr_jax`: the same as the command `trocr-jax`."""

import sys

from trocr_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
