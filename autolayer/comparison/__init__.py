"""Predicted against measured contribution, beside the baselines and the noise ceiling (`compare.compare`)."""
