"""The hot operators of AffectRT, each under one signature with several implementations.

``reference``  plain PyTorch, any float type, reads like the equations
``native``     C++ on numpy arrays, float32, needs neither torch nor a GPU
``ops``        the ``torch.library`` operator with autograd that models are built from

This package imports nothing by itself, so that the device loads ``native`` without torch.
"""
