"""From a trained network to what leaves the house: the op graph, what it costs, the packed file.

Import `graph` for the operations of a network, `cost` for its table, `export` for the file.
"""
