"""What travels between a rollout and the served simulator: the tensors of each call, by name. Rows are dreams.

A call is told apart by the input `call`: `imagine` dreams a chunk and judges it, `encode` begins a dream, `decode`
shows frames for a video, `about` says what is served.
"""

MODEL = "dreams"  # what the names of served versions begin with
TYPES = {"uint8": "UINT8", "int32": "INT32", "int64": "INT64", "float32": "FP32", "object": "BYTES"}

# name: dtype and shape of a row; -1 is what the artifact says: c latent channels, y x latent size, h w pixels,
# p pose, a action, n readings, k the latents that need noise (2, or 3 where the memory is noised, too)
INPUTS: dict[str, tuple[str, list[int]]] = {
    "call": ("object", [1]),
    "read": ("int32", [-1]),  # (n) frames of the chunk that are wanted, from 0 to 7
    "instruction": ("object", [1]),
    "first_frame": ("uint8", [3, -1, -1]),  # (3, h, w) the true first frame of the episode
    "frames": ("uint8", [-1, 3, -1, -1]),  # (5, 3, h, w) encode: the first frame and the four remembered ones
    "reference": ("float32", [-1, -1, -1]),  # (c, y, x)
    "memory": ("float32", [-1, -1, -1]),  # (c, y, x); decode: the memory that the future was dreamt from
    "future": ("float32", [-1, -1, -1, -1]),  # (c, 2, y, x) decode
    "past_actions": ("float32", [4, -1]),  # (4, a) that led to the memory
    "pose": ("float32", [5, -1]),  # (5, p)
    "held": ("int64", [1]),  # does what is at the hand go with it? 1, 0, or -1 if that is not decided
    "shut_at": ("float32", [-1]),  # (p) where the hand shut
    "actions": ("float32", [8, -1]),  # (8, a) each in [-1, 1]
    "noise": ("float32", [-1, -1, -1, -1]),  # (c, k, y, x) all the chance there is in the answer
}
OUTPUTS: dict[str, tuple[str, list[int]]] = {
    "latents": ("float32", [-1, -1, -1, -1]),  # (c, 2, y, x) imagine: the future; encode: reference and memory
    "next_memory": ("float32", [-1, -1, -1]),  # (c, y, x)
    "next_pose": ("float32", [5, -1]),  # (5, p)
    "next_held": ("int64", [1]),
    "next_shut_at": ("float32", [-1]),  # (p)
    "seen": ("uint8", [-1, 3, -1, -1]),  # (n, 3, h, w)
    "success": ("float32", [-1]),  # (n) probability that the instruction is fulfilled
    "doubt": ("float32", [-1]),  # (n) probability that the frame is wrong somewhere; 0 without a monitor
    "told": ("object", [1]),  # about: JSON
}
CALLS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # inputs beside `call`, and outputs
    "imagine": (
        ("read", "instruction", "first_frame", "reference", "memory", "past_actions", "pose", "held", "shut_at",
         "actions", "noise"),
        ("latents", "next_memory", "next_pose", "next_held", "next_shut_at", "seen", "success", "doubt"),
    ),
    "encode": (("frames",), ("latents",)),
    "decode": (("read", "reference", "memory", "future"), ("seen",)),
    "about": ((), ("told",)),
}  # fmt: skip


def config(model: str, *, instances: int, together: bool) -> str:
    """The `config.pbtxt` of the served model.

    Requests that wait are handed over together; `together` also lets them be computed as one batch, which is what a
    GPU wants, and changes the last bits of a dream with whoever else asked at that moment.
    """

    def port(name: str, dtype: str, dims: list[int], optional: str = "") -> str:
        kind = "TYPE_STRING" if dtype == "object" else f"TYPE_{TYPES[dtype]}"
        return f'  {{ name: "{name}" data_type: {kind} dims: {dims} {optional}}}'

    given = [port(name, *row, "" if name == "call" else "optional: true ") for name, row in INPUTS.items()]
    made = [port(name, *row) for name, row in OUTPUTS.items()]
    return "\n".join(
        (
            f'name: "{model}"', 'backend: "python"', "max_batch_size: 1024",
            "input [", ",\n".join(given), "]", "output [", ",\n".join(made), "]",
            f"instance_group [ {{ kind: KIND_CPU count: {instances} }} ]",
            "dynamic_batching { max_queue_delay_microseconds: 0 }",
            f'parameters {{ key: "together" value {{ string_value: "{str(together).lower()}" }} }}', "",
        )
    )  # fmt: skip
