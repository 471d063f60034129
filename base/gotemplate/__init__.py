"""Go's text/template, as far as those who read templates here need it: one parser, one evaluator, many dialects.

Actions: pipelines, ``if``/``else if``/``else``, ``with``, ``range`` (with ``$i, $v :=``, ``break``, ``continue``),
variables, comments, trim markers; not ``define``, ``template`` and ``block``. Reference: pkg.go.dev/text/template. What a
reader serves of it, how it treats a key that is not there, its functions, bounds and words are its ``Dialect``. Nothing
here imports more than the standard library's light parts: the CLI starts with it.

==============  ======================================================
``engine``      ``render``, ``Dialect``: evaluation within bounds
``parser``      text -> nodes
``functions``   Go's functions and Docker's
``values``      how a value prints, what is missing, maps of the user's
``faults``      what can be wrong, and the words for it
==============  ======================================================
"""
