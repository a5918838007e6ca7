"""Numbers below 1e-38: weights that are not used come to have such gradients, which take a CPU many times as long."""


def flush() -> None:
    """Takes them for zero from now on, in this thread and in those that begin later: so before torch has any."""
    import torch

    torch.set_flush_denormal(True)
