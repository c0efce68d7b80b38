"""Floor 7: from files to shards of latents and text, made once and trained on many times."""
