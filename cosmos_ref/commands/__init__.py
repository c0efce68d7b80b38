"""Floor 7: commands of the command line, each a module with one typed function."""
