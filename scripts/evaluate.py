"""`python scripts/evaluate.py` is `vae-lab evaluate`."""

import sys

from vae_lab.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
