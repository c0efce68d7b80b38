"""What the model is told besides the noisy latents: text, its dropout, and the given frames."""
