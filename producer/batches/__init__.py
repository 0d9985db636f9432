"""Works on batches: checks their lines, feeds them to the queue as jobs of the low lane, writes their files.

A process of its own (`python -m producer.batches`), any number of it, so that a batch takes nothing from the web
processes. All that matters is in Redis and the blob store: whoever takes a batch over goes on where the last one was.
"""
