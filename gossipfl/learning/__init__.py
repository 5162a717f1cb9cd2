"""Rooms of numbers: pure functions on vectors. No bytes of others but in compression, no clock, no hidden randomness.

Imports nothing, so that mixing, correction, compression and checks can be used without torch; only parameters, training
and evaluation know a model.
"""
