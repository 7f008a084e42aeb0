# What every image begins with: Python, an environment of its own for what is installed, and a user who is not root.
# images/*/Dockerfile build on it; `make images` builds all of them and docs/images.md tells the rest.
#   docker build -t wovr-base:0.1.0 .
ARG BASE=python:3.11-slim
FROM ${BASE} AS base

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    # nothing is written but to /tmp and what is mounted: the root file system may be read-only
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    # a name for whoever it runs as; some libraries ask, and a uid that the image does not know has none
    LOGNAME=wovr \
    # mlflow looks for a git executable that the image does without
    GIT_PYTHON_REFRESH=quiet

# The environment has no pip: its packages come from wheels that another stage has fetched.
RUN echo 'wovr:x:10001:10001::/tmp:/usr/sbin/nologin' >>/etc/passwd \
    && echo 'wovr:x:10001:' >>/etc/group \
    && python3 -m venv --without-pip /opt/venv

WORKDIR /tmp
USER 10001:10001
ENTRYPOINT []
CMD ["python3"]
