"""What runs a pipeline: channels between stages, worker threads, the hand-off to and from them, the scheduler.

Laws: Trio tasks own all state here and touch it only on the loop's thread; kernels and user functions run on worker
threads; the hand-off is the one place where two threads meet. Sources, stages and sinks never import this room.
"""
