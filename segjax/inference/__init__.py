"""From a system that labels one input size to labels of images of any size."""
