"""`python scripts/wandb_workspace.py project=vae-lab` is `vae-lab wandb_workspace project=vae-lab`."""

import sys

from vae_lab.cli import main

if __name__ == "__main__":
    main(["wandb_workspace", *sys.argv[1:]])
