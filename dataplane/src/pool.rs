//! The pool of free frames.
