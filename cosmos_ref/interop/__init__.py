"""Floor 6: weights of other implementations, by name: NVIDIA's and diffusers' layouts to ours and back."""
