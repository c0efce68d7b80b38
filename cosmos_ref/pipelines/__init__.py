"""Floor 5: from a checkpoint and a prompt to a video."""
