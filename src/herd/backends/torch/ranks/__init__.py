"""One model on several GPUs (tensor parallel): a process for each, of which the first is the one that asked for the model.

    engine --Plan--> leader.DividedBackend --Run--> [socket] --> follower       each: its part of every forward
                          └── its own part <----- sums, gathered logits (group) -----> theirs

The first process alone knows of requests and draws tokens. Docs: docs/decisions/0025-one-model-on-several-gpus.md.
"""
