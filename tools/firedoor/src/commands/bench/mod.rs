//! `firedoor bench`: what firedoor-bench measures, printed.

pub(crate) mod classify;
pub(crate) mod compare;
pub(crate) mod flows;
pub(crate) mod policy;
pub(crate) mod replay;
pub(crate) mod traffic;
pub(crate) mod tse;
pub(crate) mod upgrade;
