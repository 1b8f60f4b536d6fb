"""Files: results, sweeps, checkpoints, embeddings, and what identifies them."""
