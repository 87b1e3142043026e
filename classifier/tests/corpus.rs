//! Replays the fuzz corpus on the stable toolchain, so that what fuzzing once found stays found.

use std::fs;
use std::path::Path;

#[path = "../../tests/fuzz/checks/extract.rs"]
mod extract;

#[test]
fn extract_corpus() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/corpus/extract");
    let entries: Vec<_> =
        fs::read_dir(&corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(entries.len() >= 20, "{} holds {} cases", corpus.display(), entries.len());
    for path in entries {
        println!("{}", path.display());
        extract::check(&fs::read(&path).unwrap());
    }
}
