"""Run by test_policy_protocols in an environment that has openpi's client and none of ours: PORT KEY SIDE."""

import json
import sys

import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy

port, key, side = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
report = {"numpy": np.__version__}
client = WebsocketClientPolicy("127.0.0.1", port, api_key=key)
report["metadata"] = client.get_server_metadata()
observation = {
    "observation/image": np.full((side, side, 3), 60, np.uint8),
    "observation/wrist_image": np.full((side, side, 3), 90, np.uint8),
    "observation/state": np.linspace(-0.3, 0.3, 7),
    "prompt": "put the bowl",
}
answers = [client.infer(observation) for _ in range(3)]
report["actions"] = answers[0]["actions"].tolist()
report["dtype"] = str(answers[0]["actions"].dtype)
report["same"] = all((answer["actions"] == answers[0]["actions"]).all() for answer in answers)
report["timing"] = sorted(answers[2]["server_timing"])
report["policy"] = answers[0]["policy"]
named = {
    f"observation/images/{name}": np.full((side, side, 3), 60 + 30 * i, np.uint8)
    for i, name in enumerate(report["metadata"]["cameras"])
}
other = client.infer(named | {"state": observation["observation/state"], "prompt": "put the bowl"})
report["by_name"] = bool((other["actions"] == answers[0]["actions"]).all())
bad = {
    "float": observation | {"observation/image": np.zeros((side, side, 3))},
    "shape": observation | {"observation/image": np.zeros((side, side), np.uint8)},
    "nan": observation | {"observation/state": np.full(7, np.nan)},
    "missing": {name: value for name, value in observation.items() if name != "prompt"},
}
report["refused"] = {}
for name, wrong in bad.items():
    try:
        WebsocketClientPolicy("127.0.0.1", port, api_key=key).infer(wrong)
    except RuntimeError as error:
        report["refused"][name] = str(error)
try:
    WebsocketClientPolicy("127.0.0.1", port, api_key="not-the-key-at-all")
except Exception as error:
    report["bad_key"] = str(error)
print(json.dumps(report))
