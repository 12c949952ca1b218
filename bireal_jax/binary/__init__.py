"""The science: sign and its derivatives, weight binarizers, layers made of them, losses.

Import `binarize` for estimators, `layers` for networks, `losses` for what is minimized; the rest is theirs.
"""
