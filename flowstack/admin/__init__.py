"""The other listener: health, readiness and metrics."""
