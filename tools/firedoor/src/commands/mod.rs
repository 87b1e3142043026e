//! What the commands do, one file each: `run(args, out)` answers on `out` and returns the exit
//! status.

pub(crate) mod check;
mod source;
