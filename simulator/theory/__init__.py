"""Predictions in closed form. Nothing here calls, differentiates or simulates what it predicts."""
