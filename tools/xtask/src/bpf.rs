//! Compiles the BPF programs.
//!
//! The objects are committed, so that building Firedoor needs no clang, and compiled reproducibly,
//! so that a check can compare them: paths are relative to the repository, DWARF is stripped, BTF
//! (which the kernel reads) stays. Reference compiler: clang 14 as in Debian 12; another version may
//! choose other instructions, and then the check says which version was used.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};

/// Where the sources are, relative to the repository's root.
const SOURCES: &str = "dataplane/bpf";

/// Compiles every source and writes its object.
pub(crate) fn build() -> anyhow::Result<()> {
    for source in sources()? {
        let bytes = compile(&source)?;
        let object = object_of(&source);
        fs::write(root().join(&object), &bytes)
            .with_context(|| format!("cannot write {}", object.display()))?;
        println!("{}: {} bytes", object.display(), bytes.len());
    }
    Ok(())
}

/// Compiles every source and compares it with the committed object.
pub(crate) fn check() -> anyhow::Result<()> {
    for source in sources()? {
        let object = object_of(&source);
        let committed = fs::read(root().join(&object))
            .with_context(|| format!("cannot read {}; run `cargo xtask bpf`", object.display()))?;
        if committed != compile(&source)? {
            bail!(
                "{} is not what {} compiles to with {}; run `cargo xtask bpf` and commit it",
                object.display(),
                source.display(),
                compiler_version()?
            );
        }
        println!("{}: up to date", object.display());
    }
    Ok(())
}

/// The repository's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Every `*.bpf.c`, relative to the root, in alphabetical order.
fn sources() -> anyhow::Result<Vec<PathBuf>> {
    let mut sources = Vec::new();
    let directory = root().join(SOURCES);
    for entry in
        fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))?
    {
        let name = entry?.file_name();
        if name.to_string_lossy().ends_with(".bpf.c") {
            sources.push(Path::new(SOURCES).join(name));
        }
    }
    ensure!(!sources.is_empty(), "no *.bpf.c in {}", directory.display());
    sources.sort();
    Ok(sources)
}

/// `x.bpf.c` → `x.bpf.o`.
fn object_of(source: &Path) -> PathBuf {
    source.with_extension("o")
}

/// The stripped object that a source compiles to.
fn compile(source: &Path) -> anyhow::Result<Vec<u8>> {
    let root = root().canonicalize()?;
    let directory = root.join("target/bpf");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let output = directory.join(object_of(source).file_name().context("a source has a name")?);
    let mut clang = Command::new("clang");
    clang
        .current_dir(&root)
        .args(["-target", "bpf", "-mcpu=v3", "-O2", "-g", "-Wall", "-Werror"])
        .arg(format!("-ffile-prefix-map={}=.", root.display()))
        .args(["-idirafter", &format!("/usr/include/{}-linux-gnu", std::env::consts::ARCH)])
        .arg("-c")
        .arg(source)
        .arg("-o")
        .arg(&output);
    run(&mut clang)?;
    run(Command::new("llvm-strip").arg("--strip-debug").arg(&output))?;
    fs::read(&output).with_context(|| format!("cannot read {}", output.display()))
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| {
        format!("cannot run {program}; on Debian: apt-get install clang llvm libbpf-dev")
    })?;
    ensure!(status.success(), "{program} failed");
    Ok(())
}

fn compiler_version() -> anyhow::Result<String> {
    let output = Command::new("clang").arg("--version").output().context("cannot run clang")?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}
