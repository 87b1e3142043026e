//! Intent: the config file as its author wrote it, with places for errors.
