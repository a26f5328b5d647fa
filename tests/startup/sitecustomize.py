"""On the path of every Python process that the tests start: the garbage collector looks seldom.

Importing torch, transformers and Ray makes hundreds of thousands of objects that stay. With
Python's thresholds the collector visits them a thousand times meanwhile, and that takes a sixth of
a worker's start, which is most of what the tests on Ray compute.
"""

import gc

gc.set_threshold(200_000, 20, 50)
