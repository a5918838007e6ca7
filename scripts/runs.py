"""`python scripts/runs.py ls` is `vae-lab runs ls`."""

import sys

from vae_lab.cli import main

if __name__ == "__main__":
    main(["runs", *sys.argv[1:]])
