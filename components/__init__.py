"""Carriers: each reads ports, calls one step of the method, and writes ports."""
