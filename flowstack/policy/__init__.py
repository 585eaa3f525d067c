"""Rules as pure functions: values in, values out; no reactor, no clock, no file, no socket."""
