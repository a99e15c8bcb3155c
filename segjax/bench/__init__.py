"""How fast segjax is, measured beside PyTorch in one run: `segjax bench`.

Nothing here is needed to train or predict. PyTorch is asked for only where it is measured.
"""
