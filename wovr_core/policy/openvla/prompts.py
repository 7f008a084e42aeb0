"""What OpenVLA is asked, as tokens: the same sentence about every task, padded on the left."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from tokenizers import Tokenizer
from torch import Tensor

from wovr_core.artifacts import ArtifactError

PROMPT = "In: What action should the robot take to {}?\nOut: "
BEGIN, STOP = 1, 2  # Llama's tokens
SPACE = "▁"  # Llama's word for one; the prompt ends in it, and actions come after


class Prompts:
    """Instructions to ids, each worked out once."""

    def __init__(self, tokenizer: Tokenizer, *, padding: int) -> None:
        self.tokenizer, self.padding = tokenizer, padding
        self._known: dict[str, list[int]] = {}

    @classmethod
    def open(cls, folder: Path, *, vocabulary: int, padding: int) -> "Prompts":
        """Of a checkpoint's tokenizer.json. Raises `ArtifactError` where it is not the one of `vocabulary` tokens."""
        file = folder / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises nothing narrower
            raise ArtifactError(f"{file} is no tokenizer ({error}): download it again") from error
        size, prompts = tokenizer.get_vocab_size(with_added_tokens=False), cls(tokenizer, padding=padding)
        if size != vocabulary:
            raise ArtifactError(
                f"{file} knows {size} tokens, but the model's actions are the last 256 of {vocabulary}: take the "
                f"tokenizer that came with the checkpoint"
            )
        ids = prompts.ids("")
        if ids[0] != BEGIN or ids[-1] != tokenizer.token_to_id(SPACE) or ids.count(BEGIN) != 1:
            raise ArtifactError(
                f"{file} makes tokens {ids[0]} to {ids[-1]} of the prompt, but the model learnt it from {BEGIN} to "
                f"{tokenizer.token_to_id(SPACE)}, a space: take the tokenizer that came with the checkpoint"
            )
        return prompts

    def ids(self, instruction: str) -> list[int]:
        """The prompt about one task."""
        if instruction not in self._known:
            self._known[instruction] = self.tokenizer.encode(PROMPT.format(instruction.lower())).ids
        return self._known[instruction]

    def batch(self, instructions: Sequence[str]) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]]:
        """Ids, and where they are no padding, which lies between the first token and the rest."""
        every = [self.ids(instruction) for instruction in instructions]
        longest = max(map(len, every))
        padded = [[ids[0], *[self.padding] * (longest - len(ids)), *ids[1:]] for ids in every]
        place, length = torch.arange(longest), torch.tensor([len(ids) for ids in every])
        return torch.tensor(padded), (place == 0) | (place > longest - length[:, None])
