"""The other listener: health and readiness."""
