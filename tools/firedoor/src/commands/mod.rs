//! What the commands do, one file each: `run(args, out)` answers on `out` and returns the exit
//! status.

mod ask;
pub(crate) mod bench;
pub(crate) mod check;
pub(crate) mod connectivity;
pub(crate) mod demo;
pub(crate) mod denies;
#[cfg(test)]
#[path = "../../tests/documented/mod.rs"]
mod documented;
pub(crate) mod flows;
pub(crate) mod install;
pub(crate) mod lab;
pub(crate) mod policy;
pub(crate) mod port;
pub(crate) mod ports;
pub(crate) mod role;
pub(crate) mod run;
mod source;
pub(crate) mod status;
pub(crate) mod trace;
pub(crate) mod upgrade;

use firedoor_classifier::snapshot::Mode;

/// A mode's name, as the config writes it.
fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Learn => "learn",
        Mode::Audit => "audit",
        Mode::Enforce => "enforce",
    }
}
