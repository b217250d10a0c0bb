"""From a trained checkpoint to a model bundle that the device can load."""
