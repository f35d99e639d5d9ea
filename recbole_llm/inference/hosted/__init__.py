"""Models behind an address: prompts are written to a file, asked elsewhere or here, and the answers become a run."""
