"""HTTP's own forms, sans-io: bytes in, values out."""
