"""Flowstack: one door of your own in front of the OpenAI API.

A client changes its base URL and adds one header, ``Flowstack-Auth``. Flowstack checks that key, relays the
request byte for byte, streams the answer as it comes, and writes down what was used.
"""

__version__ = "0.1.0"
