"""The state of this process: the lock around what is not a thread's own, the modes of torch, the random generators."""
