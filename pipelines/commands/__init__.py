"""Commands that belong together, a file each; `pipelines/cli.py` has the others."""
