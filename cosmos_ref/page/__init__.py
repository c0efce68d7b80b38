"""Pages that a run ends with: what they are made of, their style, their plots."""
