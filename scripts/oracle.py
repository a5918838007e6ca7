"""`python scripts/oracle.py ppca` is `vae-lab oracle ppca`."""

import sys

from vae_lab.cli import main

if __name__ == "__main__":
    main(["oracle", *sys.argv[1:]])
