//! Maintenance tasks: `cargo xtask --help`.
#![forbid(unsafe_code)]

mod bpf;

use clap::{Parser, Subcommand};

/// Maintenance tasks of this repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Compiles the BPF programs and writes the objects beside their sources.
    ///
    /// Example: cargo xtask bpf --check
    Bpf {
        /// Writes nothing; fails if a committed object differs from what its source compiles to.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().task {
        Task::Bpf { check: false } => bpf::build(),
        Task::Bpf { check: true } => bpf::check(),
    }
}
