"""Triton starts as it will serve, loads a model that imports the code that dreams, and answers."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import Request, urlopen

MODEL = """
import numpy as np
import triton_python_backend_utils as triton
from components.serving.dreams import code_that_dreams

class TritonPythonModel:
    def execute(self, requests):
        said = np.array([code_that_dreams().encode()], dtype=object)
        return [triton.InferenceResponse([triton.Tensor("code", said)]) for _ in requests]
"""
CONFIG = """
backend: "python"
input { name: "ask" data_type: TYPE_FP32 dims: [1] }
output { name: "code" data_type: TYPE_STRING dims: [1] }
"""
ASKED = {"inputs": [{"name": "ask", "shape": [1], "datatype": "FP32", "data": [0]}]}

models = Path("/tmp/models")
(models / "who" / "1").mkdir(parents=True)
(models / "who" / "1" / "model.py").write_text(MODEL)
(models / "who" / "config.pbtxt").write_text(CONFIG)
with (
    open("/tmp/triton.log", "w") as log,
    subprocess.Popen(
        ["/opt/triton/serve"], env={**os.environ, "MODELS": str(models)}, stdout=log, stderr=log
    ) as server,
):
    try:
        for _ in range(120):
            try:
                urlopen("http://127.0.0.1:8000/v2/models/who/ready", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        asked = Request("http://127.0.0.1:8000/v2/models/who/infer", data=json.dumps(ASKED).encode())
        with urlopen(asked, timeout=30) as answer:
            print("Triton answers:", json.load(answer)["outputs"][0]["data"][0])
    except OSError as error:
        sys.exit(f"Triton does not answer ({error}):\n{Path('/tmp/triton.log').read_text()[-3000:]}")
    finally:
        server.terminate()
