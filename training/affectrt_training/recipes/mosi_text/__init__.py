"""Sentiment from words alone, as CMU-MOSI rates it, by an encoder small enough for the device."""
