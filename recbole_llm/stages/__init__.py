"""What a run needs before it can be trained: an ID model, a pre-training."""
