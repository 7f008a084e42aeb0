"""Commands that belong together, a file each; `pipelines/cli/app.py` has the others."""
