"""Feature extraction: one implementation serves training and the device."""
