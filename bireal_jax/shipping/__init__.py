"""What leaves the house: the op graph of a network, what it costs, the packed file.

Import `graph` for the operations of a network, `cost` for its table, `export` for the file,
`formats` for those of other engines. `python -m bireal_jax.shipping net.safetensors net.onnx` turns one into another.
"""
