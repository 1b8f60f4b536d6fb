"""The bench of the engine: machines, engines, turns, cost model."""
