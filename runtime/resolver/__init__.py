"""Service discovery: the DNS server that containers find at 127.0.0.11, a process of its own.

``port`` is what the rest of the engine sees of it.
"""
