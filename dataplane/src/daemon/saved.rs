//! The saved snapshot: what a restarted data plane enforces before anybody tells it anything.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use firedoor_api::{Decoder, ProtocolError, encode};
use firedoor_classifier::snapshot::Snapshot;

const FILE: &str = "snapshot";

/// Why a snapshot could not be saved or read back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SavedError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: {source}; remove the file and let control install its policy again")]
    Format { path: PathBuf, source: ProtocolError },
    #[error("{path} is cut short; remove the file and let control install its policy again")]
    Short { path: PathBuf },
}

/// The saved snapshot, if there is one.
pub(crate) fn load(run_dir: &Path) -> Result<Option<Snapshot>, SavedError> {
    let path = run_dir.join(FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(SavedError::Io { path, source }),
    };
    let mut decoder = Decoder::default();
    decoder.push(&bytes);
    match decoder.next_message() {
        Ok(Some(snapshot)) => Ok(Some(snapshot)),
        Ok(None) => Err(SavedError::Short { path }),
        Err(source) => Err(SavedError::Format { path, source }),
    }
}

/// Saves a snapshot: whole or not at all, by renaming.
pub(crate) fn store(run_dir: &Path, snapshot: &Snapshot) -> Result<(), SavedError> {
    let path = run_dir.join(FILE);
    let bytes =
        encode(snapshot).map_err(|source| SavedError::Format { path: path.clone(), source })?;
    let new = run_dir.join("snapshot.new");
    fs::write(&new, bytes)
        .and_then(|()| fs::rename(&new, &path))
        .map_err(|source| SavedError::Io { path, source })
}

/// Puts back what was saved before a snapshot that turned out not to be enforceable.
pub(crate) fn restore(run_dir: &Path, before: Option<&Snapshot>) {
    let restored = match before {
        Some(snapshot) => store(run_dir, snapshot),
        None => fs::remove_file(run_dir.join(FILE))
            .map_err(|source| SavedError::Io { path: run_dir.join(FILE), source }),
    };
    if let Err(error) = restored {
        tracing::error!(%error, "the saved snapshot is not the one in force");
    }
}
