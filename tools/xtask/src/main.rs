//! Maintenance tasks: `cargo xtask --help`.
#![forbid(unsafe_code)]

mod bpf;
mod peers;

use std::path::PathBuf;

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
    /// Measures a part of Firedoor beside the best of others, on the same input.
    #[command(subcommand)]
    Peers(Peer),
}

#[derive(Subcommand)]
enum Peer {
    /// The ACL beside DPDK's rte_acl. Needs dpdk-test-acl (Debian package dpdk-dev).
    ///
    /// Example: cargo xtask peers acl tests/data/classbench/fw1_1k
    Acl {
        /// Files of rules in ClassBench's format; those of the tests if left out.
        rules: Vec<PathBuf>,
        /// How often each is measured.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
        rounds: u16,
        /// Headers that are looked up at once.
        #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
        burst: u32,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().task {
        Task::Bpf { check: false } => bpf::build(),
        Task::Bpf { check: true } => bpf::check(),
        Task::Peers(Peer::Acl { rules, rounds, burst }) => peers::acl(&rules, rounds.into(), burst),
    }
}
