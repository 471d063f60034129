"""Archives that nobody vouches for: decompressed, read and unpacked within bounds, layers in a process of its own.

That process starts lean: what is here imports the standard library, the decompressors and ``base.trees`` alone, and
little of those.
"""
