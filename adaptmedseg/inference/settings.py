"""How inference runs; the answer does not depend on it but for rounding (bf16).

Models with context priors are the exception when zooming in: structures that are at work together, of which
`stitch_bytes` decides, see each other's task tokens.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class InferenceSettings:
    """bf16: matrix products in bfloat16. window_batch: windows encoded, and prompts decoded, at once.

    stitch_on_cpu: logits of the whole volume live in main memory, whatever the device. stitch_bytes: how much they may
    take; structures beyond that wait for their turn (one is always at work). cache_bytes: how much embeddings may take
    that wait to be asked again; what does not fit is encoded anew.
    """

    bf16: bool = True
    window_batch: int = 1
    stitch_on_cpu: bool = True
    stitch_bytes: int = 1 << 30
    cache_bytes: int = 1 << 30
