//! The saved snapshot: what a restarted data plane enforces before anybody tells it anything.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use firedoor_api::{Decoder, ProtocolError, encode};
use firedoor_classifier::snapshot::Snapshot;

const FILE: &str = "snapshot";
/// What the last [`store`] replaced.
const BEFORE: &str = "snapshot.before";

/// Why a snapshot could not be saved or read back.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// The file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Its path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// What is in it is no snapshot of this version.
    #[error("{path}: {source}; remove the file and let control install its policy again")]
    Format {
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        source: ProtocolError,
    },
    /// It ends too early.
    #[error("{path} is cut short; remove the file and let control install its policy again")]
    Short {
        /// Its path.
        path: PathBuf,
    },
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

/// Saves a snapshot: whole or not at all, by renaming. The one before stays beside it until this one is
/// [settled](settle) or [taken back](take_back), which therefore takes no room on a disk.
pub(crate) fn store(run_dir: &Path, snapshot: &Snapshot) -> Result<(), SavedError> {
    let path = run_dir.join(FILE);
    let bytes =
        encode(snapshot).map_err(|source| SavedError::Format { path: path.clone(), source })?;
    let draft = run_dir.join("snapshot.new");
    settle(run_dir);
    let kept = match fs::hard_link(&path, run_dir.join(BEFORE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    let stored =
        kept.and_then(|()| fs::write(&draft, bytes)).and_then(|()| fs::rename(&draft, &path));
    stored.map_err(|source| {
        // What there is of it takes room that somebody lacks. The first error is the one to tell.
        let _ = fs::remove_file(&draft);
        settle(run_dir);
        SavedError::Io { path, source }
    })
}

/// What was stored last stays.
pub(crate) fn settle(run_dir: &Path) {
    // If nothing was there before, nothing lies beside it.
    let _ = fs::remove_file(run_dir.join(BEFORE));
}

/// Puts back what was saved before a snapshot that turned out not to be enforceable, or nothing.
pub(crate) fn take_back(run_dir: &Path) {
    let path = run_dir.join(FILE);
    let restored = match fs::rename(run_dir.join(BEFORE), &path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::remove_file(&path),
        renamed => renamed,
    };
    if let Err(error) = restored {
        tracing::error!(%error, "the saved snapshot is not the one in force");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(epoch: u64) -> Snapshot {
        Snapshot {
            epoch,
            switch: "saved".into(),
            mode: Default::default(),
            settings: Default::default(),
            workloads: Vec::new(),
            tags: Vec::new(),
            prefixes: Vec::new(),
            world: Default::default(),
            rules: Vec::new(),
        }
    }

    #[test]
    fn what_is_stored_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path()).unwrap().is_none());
        store(dir.path(), &snapshot(7)).unwrap();
        assert_eq!(load(dir.path()).unwrap(), Some(snapshot(7)));
        take_back(dir.path());
        assert!(load(dir.path()).unwrap().is_none());
    }

    #[test]
    fn what_was_stored_before_comes_back_until_it_is_settled() {
        let dir = tempfile::tempdir().unwrap();
        for epoch in [7, 8] {
            store(dir.path(), &snapshot(epoch)).unwrap();
        }
        take_back(dir.path());
        assert_eq!(load(dir.path()).unwrap(), Some(snapshot(7)));
        store(dir.path(), &snapshot(9)).unwrap();
        settle(dir.path());
        assert_eq!(load(dir.path()).unwrap(), Some(snapshot(9)));
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "nothing is left beside it: {names:?}");
    }

    #[test]
    fn a_damaged_file_is_an_error_that_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        store(dir.path(), &snapshot(7)).unwrap();
        let whole = fs::read(dir.path().join(FILE)).unwrap();
        for cut in 0..whole.len() {
            fs::write(dir.path().join(FILE), &whole[..cut]).unwrap();
            let error = load(dir.path()).unwrap_err();
            assert!(error.to_string().contains("remove the file"), "{error}");
        }
        fs::write(dir.path().join(FILE), b"\0\0\0\x09\0\x63rubbish").unwrap();
        assert!(matches!(load(dir.path()), Err(SavedError::Format { .. })));
    }
}
