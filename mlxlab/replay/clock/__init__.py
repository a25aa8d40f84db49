"""A server on a simulated clock: who waits for whom, and for how long.

It follows our runner's turns on calibrated seconds, and runs without a model.
"""
