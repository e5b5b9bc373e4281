"""What runs inside a model's training forward: context, losses, global reductions."""
