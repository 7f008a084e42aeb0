"""The services of this machine: S3, MLflow and Triton, and whether it has what WoVR needs."""
