"""The science of 1-bit networks: sign and its derivatives, weight binarizers, the layers made of them, losses.

Import `binarize` for estimators, `layers` for networks, `losses` for what is minimized; the rest is theirs.
"""
