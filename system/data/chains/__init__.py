"""Arithmetic chains: nested expressions, their step-by-step solutions, their redraws and where they come from."""
