"""Runs a pipeline: here, task after task, or on a cluster that it is handed to."""
