"""Training of many small dual encoders in one compiled program, and flows."""
