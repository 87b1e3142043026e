//! The slow path: one frame's headers to a verdict and the mask of what was consulted.
