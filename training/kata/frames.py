"""All frames. Three families are plain walks; four are structurally harder."""

from __future__ import annotations

from training.kata.early_exit_frames import EARLY_EXIT_FRAMES
from training.kata.frame import HARD_FAMILIES, PLAIN_FAMILIES, Frame
from training.kata.nested_frames import NESTED_FRAMES
from training.kata.plain_frames import PLAIN_FRAMES
from training.kata.state_frames import STATE_FRAMES
from training.kata.two_inputs_frames import TWO_INPUT_FRAMES

__all__ = ["FRAMES", "HARD_FAMILIES", "PLAIN_FAMILIES", "Frame"]

FRAMES: dict[str, Frame] = {
    frame.name: frame for frame in [*PLAIN_FRAMES, *NESTED_FRAMES, *EARLY_EXIT_FRAMES, *TWO_INPUT_FRAMES, *STATE_FRAMES]
}
