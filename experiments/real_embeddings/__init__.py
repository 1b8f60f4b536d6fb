"""The study of real embeddings, and its figure."""
