"""The commands of `wovr`, those that belong together in one file; `run`, `report` and `compile` are in `cli/app.py`."""
