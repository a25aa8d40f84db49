"""The verbs: compare, sweep, tune, calibrate, explain misses, measure fidelity."""
