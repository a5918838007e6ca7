"""Where Hydra looks for launchers and sweepers, and nowhere else. They only hand on: the code is in vae_lab/launch/.

Hydra imports all of them for any command, so that each imports its own code when it is asked for.
"""
