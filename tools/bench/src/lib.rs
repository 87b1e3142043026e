//! What `firedoor bench` measures.
//!
//! Each module is one command: [`classify`] the ACL on rules and headers from files, [`flows`] the
//! connection table, [`tse`] the flow cache under tuple space explosion, [`policy`] a large policy on its way
//! into force, [`replay`] a whole switch on a
//! capture, [`upgrade`] what clients notice of one, [`compare`] whole switches side by side, with [`traffic`]
//! of our own; [`scene`] is what their switches are made of. A measurement is a function from its options to a report that
//! serializes; printing is the command line's. Whatever takes long reports to a [`Progress`].
#![forbid(unsafe_code)]

pub mod classify;
pub mod compare;
pub mod flows;
pub mod policy;
mod progress;
pub mod replay;
pub mod scene;
pub mod traffic;
pub mod tse;
pub mod upgrade;

pub use progress::Progress;
