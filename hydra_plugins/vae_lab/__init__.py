"""Where Hydra looks for launchers and sweepers, and nowhere else. They only hand on: the code is in vae_lab/launch/."""
