"""An ONNX graph in int8: weights per output channel, word embeddings per word, activations as they come."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from stages.errors import StageError
from stages.student.exporting.graph import quiet


def quantized(model: Any, *, vocabulary: int) -> Any:
    """Quantise the weights of all layers and the word embeddings; the classifier stays in float32.

    Args:
        model: An ``onnx.ModelProto`` as `traced_graph` gives it: onnxruntime's tool skips what is in an If.
        vocabulary: Rows of the word embeddings.

    Returns:
        Another one.

    Raises:
        StageError: Another table has as many rows as the word embeddings.
    """
    import onnx  # an extra, and slow
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, before)
        with quiet():  # it advises to optimise first
            quantize_dynamic(
                before,
                after,
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                reduce_range=True,  # 7 bits: processors without VNNI add up pairs of products in 16 bits
                weight_type=QuantType.QInt8,
            )
        made = onnx.load(after)
    _quantize_embeddings(made.graph, vocabulary)
    return made


def _quantize_embeddings(graph: Any, vocabulary: int) -> None:
    """Put int8 and a scale per word in the place of the word embeddings, ``(V, H)``.

    onnxruntime's tool has one scale for all words, which the largest number of any word decides.
    """
    from onnx import TensorProto, helper, numpy_helper

    lookups = [node for node in graph.node if node.op_type == "Gather"]
    of_words = [node for node in lookups if _rows(graph, node.input[0]) == vocabulary]
    if len(of_words) != 1:
        raise StageError(
            f"the graph has {len(of_words)} tables of {vocabulary} rows, so that nothing tells which of them "
            "holds the word embeddings; leave out --quantize"
        )
    [node] = of_words
    table = next(weight for weight in graph.initializer if weight.name == node.input[0])
    values = numpy_helper.to_array(table)
    scales = np.maximum(np.abs(values).max(axis=1, keepdims=True) / 127, np.finfo(np.float32).tiny)
    name, ids, looked_up = table.name, node.input[1], node.output[0]
    graph.initializer.remove(table)
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.round(values / scales).astype(np.int8), f"{name}_int8"),
            numpy_helper.from_array(scales.astype(np.float32), f"{name}_scales"),
        ]
    )
    place = list(graph.node).index(node)
    nodes = [
        helper.make_node("Gather", [f"{name}_int8", ids], [f"{looked_up}_int8"]),
        helper.make_node("Cast", [f"{looked_up}_int8"], [f"{looked_up}_as_float"], to=TensorProto.FLOAT),
        helper.make_node("Gather", [f"{name}_scales", ids], [f"{looked_up}_scales"]),
        helper.make_node("Mul", [f"{looked_up}_as_float", f"{looked_up}_scales"], [looked_up]),
    ]
    graph.node.remove(node)
    for index, new in enumerate(nodes):
        graph.node.insert(place + index, new)


def _rows(graph: Any, name: str) -> int:
    return next((weight.dims[0] for weight in graph.initializer if weight.name == name), 0)
