"""The parts of :class:`affectrt.stream.Stream`: what is pushed, what is computed from it, what comes out."""
