# The project image: one environment for every step, in Kubeflow and under Docker. images/* build on its `base` stage.
#   docker build -t wovr .                          torch's default build (with CUDA)
#   docker build -t wovr --build-arg TORCH_INDEX=<index with CPU-only builds> .
ARG BASE=python:3.11-slim
FROM ${BASE} AS base

# what a cluster wants besides: clients of Triton and S3 (MLflow's server runs in this image too), Prometheus
ARG EXTRAS="cluster"
ARG TORCH_INDEX=""
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    # mlflow looks for a git executable that the image does without
    GIT_PYTHON_REFRESH=quiet \
    # caches go where a read-only root file system still has a /tmp
    HOME=/tmp

RUN python3 -m venv /opt/venv
WORKDIR /opt/wovr
# torch first: the largest layer changes least
COPY constraints.txt ./
RUN pip install -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch
COPY . .
RUN pip install --use-pep517 -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} ".${EXTRAS:+[$EXTRAS]}"

WORKDIR /tmp
USER 10001:10001
ENTRYPOINT []
CMD ["wovr", "--help"]
