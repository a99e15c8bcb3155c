"""Measures of predictions: accumulated on the device, exact at the end."""
