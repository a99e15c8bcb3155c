"""Images and labels on the host: reading, label spaces, datasets, augmentation, batches.

numpy, OpenCV and Grain only. A dataset is a function that returns random access to examples;
nothing is registered.
"""
