"""Where randomness comes from: one seed for each purpose, never a global generator."""

import hashlib


def seed_of(seed: int, *purpose: str | int) -> int:
    """Seed of the generator for one purpose, in [0, 2**63).

    The same (seed, purpose) gives the same number in every process, on every machine, whatever the
    worker count or the hash seed; two purposes are independent. `seed_of(params.seed, "views",
    slide_id, epoch)`.
    """
    text = "\x1f".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
