"""A log of one member in memory: the second implementation of the consensus port, for tests of what stands on it."""
