#!/bin/sh
# Starts Triton as `wovr stack up` does (pipelines/stack/servers.py): explicit control over models, which are loaded from
# $MODELS (/models). Arguments go to tritonserver. It listens on every address of the container.
set -eu
packages=$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
base=$(python3 -c 'import sys; print(sys.base_prefix)')
export LD_LIBRARY_PATH="$packages/nvidia_pytriton.libs:$base/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
# a model that cannot be loaded keeps neither the server nor the other models from work
exec "$packages/pytriton/tritonserver/bin/tritonserver" --model-repository "${MODELS:-/models}" \
    --backend-directory /opt/triton/backends --model-control-mode explicit --load-model '*' \
    --exit-on-error false --strict-readiness false --exit-timeout-secs 5 "$@"
