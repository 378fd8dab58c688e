"""The durable log: rows appended as checksummed frames, read again from any offset. The format is in README.md."""
