"""The misbehaviour of a failure as a differentiable function of the policy; never a gradient of it."""
