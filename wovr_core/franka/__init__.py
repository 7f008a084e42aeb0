"""Trials on a robot: what may be planned, moved and recorded. No driver; numpy and pydantic are all it needs."""
