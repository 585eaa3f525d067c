"""The flat file of keys: read, swapped whole on reload, edited by the command line."""
