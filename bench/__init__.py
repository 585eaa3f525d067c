"""How fast Flowstack is, beside whom, on this machine: ``python -m bench``. See ``bench/README.rst``."""
