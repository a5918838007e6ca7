"""Every random number of a run comes from a stream of its own, named by what it is for."""

import hashlib

import torch


def seed_of(*key: object) -> int:
    """A seed in [0, 2^63) for the stream called `key`: the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little") >> 1


def generator(device: torch.device | str, *key: object) -> torch.Generator:
    """A generator at the beginning of the stream called `key`."""
    return torch.Generator(device).manual_seed(seed_of(*key))
