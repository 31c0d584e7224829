"""The local interfaces: one module per protocol, all of them asking the same evaluator."""
