"""The student as one ONNX graph: traced, routed by language, and in int8."""
