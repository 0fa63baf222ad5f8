"""tritonserver's Python backend: Triton forms the batch of requests, this runs it as one. Copied to 1/model.py."""

from __future__ import annotations

import numpy as np
import triton_python_backend_utils as triton
from tail import Tail


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.tail = Tail()

    def execute(self, requests: list) -> list:
        tensors = [triton.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        answers = self.tail.run(tensors[0] if len(tensors) == 1 else np.concatenate(tensors))
        responses, at = [], 0
        for given in tensors:
            mine = answers[at : at + len(given)]
            at += len(given)
            responses.append(triton.InferenceResponse(output_tensors=[triton.Tensor("logits", mine)]))
        return responses
