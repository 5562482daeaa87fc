"""The registry of what can be seen: metrics and what their labels may say. See `registry`."""
