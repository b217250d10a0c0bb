"""Where a live stream's input comes from: camera, microphone, network stream, a file at real-time pace."""
