"""When a training's checkpoints are written, and what happens where they cannot be."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from adaptmedseg.training.checkpoint import Checkpoint, CheckpointFolder
from adaptmedseg.training.running_config import CheckpointConfig

IDENTITY = "identity"


class CheckpointKeeper:
    """Writes a checkpoint as often as a configuration says."""

    def __init__(
        self,
        folder: CheckpointFolder,
        config: CheckpointConfig,
        identity: Mapping[str, Any],
        now: Callable[[], float] = time.monotonic,
    ):
        """`identity` says of which training the checkpoints are."""
        self.folder = folder
        self.config = config
        self.identity = identity
        self.now = now
        self.last = now()

    def is_due(self, step: int) -> bool:
        """Whether the training should write one after this step."""
        by_steps = self.config.steps is not None and step % self.config.steps == 0
        by_time = self.config.minutes is not None and self.now() - self.last >= 60 * self.config.minutes
        return by_steps or by_time

    def write(self, checkpoint: Checkpoint) -> tuple[Path | None, str]:
        """Write one. Where the disk is full or the folder gone: None and a sentence; the older ones stay."""
        try:
            path = self.folder.write(replace(checkpoint, facts={**checkpoint.facts, IDENTITY: self.identity}))
        except OSError as error:
            reason = error.strerror or str(error)
            left = self.folder.steps()
            older = f"the last one is that of step {left[-1]}" if left else "there is none yet"
            return None, f"{self.folder.folder}: no checkpoint at step {checkpoint.step} ({reason}); {older}"
        finally:
            self.last = self.now()
        return path, ""
