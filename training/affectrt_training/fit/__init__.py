"""Training of any fusion model on any data set: Lightning's loops, our data, our checkpoints."""
