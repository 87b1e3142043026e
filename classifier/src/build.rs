//! Builds whole, valid frames: for `trace`, for tests, and for the switch's own answers.
