"""`python scripts/report.py` is `vae-lab report`."""

import sys

from vae_lab.cli import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
