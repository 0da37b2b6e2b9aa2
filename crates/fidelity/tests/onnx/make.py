"""Makes the small ONNX models of the tests, and what they give: pip install onnx numpy; python make.py

Expected values are those of ONNX's reference evaluator.
"""

import json

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper, save
from onnx.reference import ReferenceEvaluator


def values(*shape, step=37):
    """Values between -1 and 1 that the tests make again."""
    count = int(np.prod(shape))
    return (((np.arange(count) * step) % 101) / 50 - 1).astype(np.float32).reshape(shape)


def model(name, nodes, weights, inputs, outputs):
    def of(entries):
        return [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in entries]

    initializers = [numpy_helper.from_array(value, n) for n, value in weights.items()]
    graph = helper.make_graph(nodes, name, of(inputs), of(outputs), initializers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(made, full_check=True)
    save(made, f"{name}.onnx")
    return ReferenceEvaluator(made)


node = helper.make_node

# Patches, positions that are resized to their number as DINOv2 does, tokens, and a mean of them.
encoder = model(
    "encoder",
    [
        node("Conv", ["images", "kernel", "bias"], ["patches"], strides=[2, 2], dilations=[1, 1], pads=[0, 0, 0, 0]),
        node("Shape", ["patches"], ["patches_shape"]),
        node("Slice", ["patches_shape", "two", "four"], ["patches_size"]),
        node("Concat", ["positions_shape", "patches_size"], ["size"], axis=0),
        node("Resize", ["positions", "", "", "size"], ["resized"], mode="cubic", cubic_coeff_a=-0.75),
        node("Add", ["patches", "resized"], ["placed"]),
        node("Tanh", ["placed"], ["active"]),
        node("Reshape", ["active", "rows"], ["row_tokens"]),
        node("Transpose", ["row_tokens"], ["tokens"], perm=[0, 2, 1]),
        node("GlobalAveragePool", ["active"], ["pooled"]),
        node("Flatten", ["pooled"], ["means"]),
        node("Gemm", ["means", "head", "head_bias"], ["features"]),
    ],
    {
        "kernel": values(4, 3, 2, 2, step=29),
        "bias": values(4, step=11),
        "positions": values(1, 4, 5, 5, step=17),
        "positions_shape": np.array([1, 4], np.int64),
        "rows": np.array([0, 4, -1], np.int64),
        "two": np.array([2], np.int64),
        "four": np.array([4], np.int64),
        "head": values(4, 5, step=13),
        "head_bias": values(5, step=7),
    },
    [("images", ["batch", 3, "height", "width"])],
    [("tokens", ["batch", "tokens", 4]), ("features", ["batch", 5])],
)

# Two grey images at once, and tokens alone.
pair = model(
    "pair",
    [
        node("Conv", ["images", "kernel"], ["patches"], strides=[2, 2], dilations=[1, 1], pads=[0, 0, 0, 0]),
        node("Tanh", ["patches"], ["active"]),
        node("Reshape", ["active", "rows"], ["row_tokens"]),
        node("Transpose", ["row_tokens"], ["tokens"], perm=[0, 2, 1]),
    ],
    {"kernel": values(3, 1, 2, 2, step=29), "rows": np.array([2, 3, 4], np.int64)},
    [("images", [2, 1, 4, 4])],
    [("tokens", [2, 4, 3])],
)

tokens, features = encoder.run(["tokens", "features"], {"images": values(3, 3, 6, 6)})
pairs = pair.run(None, {"images": values(2, 1, 4, 4)})[0]
expected = {"features": features, "tokens": tokens[:, 0], "pair": pairs[:, 0]}
with open("expected.json", "w") as file:
    json.dump({name: np.round(rows.astype(float), 7).tolist() for name, rows in expected.items()}, file, indent=1)
    file.write("\n")
