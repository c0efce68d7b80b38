"""Floor 6: weights, clips and the tokens of a clip, split among many processes; the modules do not know of it."""
