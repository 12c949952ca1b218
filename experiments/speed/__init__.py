"""Training speed against plain PyTorch."""
