"""`python scripts/wandb_sweep.py -m d=2,8` is `vae-lab train -m hydra/sweeper=wandb d=2,8`: it writes sweep.yaml."""

import sys

from vae_lab.cli import main

if __name__ == "__main__":
    arguments = [a for a in sys.argv[1:] if a not in ("-m", "--multirun")]
    main(["train", "-m", "hydra/sweeper=wandb", *arguments])
