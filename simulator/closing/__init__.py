"""Closing the gap after training: rules, an index for vector engines, and certificates."""
