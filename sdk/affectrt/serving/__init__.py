"""``affectrt serve``: streams of other programs and of a web page, over one documented WebSocket protocol."""
