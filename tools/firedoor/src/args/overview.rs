//! What `firedoor --help` shows: the commands by what one wants to do. clap lists them in one row.

use std::fmt::Write;

use clap::{Command, CommandFactory};

use super::Cli;

/// Every command that is not hidden, under what it is for.
const GROUPS: [(&str, &[&str]); 6] = [
    ("See it work", &["demo", "lab"]),
    ("Write a policy, without root or a switch", &["check", "connectivity", "trace"]),
    ("Run a switch", &["run", "policy", "port", "upgrade"]),
    ("Look at a running one", &["status", "ports", "flows", "denies"]),
    ("Measure", &["bench"]),
    ("Install", &["completions", "man"]),
];

/// The command tree, whose help has [`GROUPS`].
pub(crate) fn command() -> Command {
    let command = Cli::command();
    let style = *command.get_styles().get_header();
    let mut template = "{about-with-newline}\n{usage-heading} {usage}\n\n".to_owned();
    for (purpose, names) in GROUPS {
        let _ = writeln!(template, "{style}{purpose}:{style:#}");
        for name in names {
            list(&command, name, &mut template);
        }
        template.push('\n');
    }
    let _ = write!(template, "{style}Options:{style:#}\n{{options}}{{after-help}}");
    command.help_template(template)
}

/// Writes a command and what it does.
fn list(command: &Command, name: &str, template: &mut String) {
    let style = command.get_styles().get_literal();
    let about = command.find_subcommand(name).and_then(Command::get_about);
    let about = about.map(ToString::to_string).unwrap_or_default();
    let _ = writeln!(template, "  {style}{name:<12}{style:#}  {about}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_in_one_group_and_fits_a_line() {
        let mut grouped: Vec<&str> =
            GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        let cli = Cli::command();
        let shown = cli.get_subcommands().filter(|command| !command.is_hide_set());
        let mut all: Vec<&str> = shown.map(Command::get_name).collect();
        grouped.sort_unstable();
        all.sort_unstable();
        assert_eq!(grouped, all);
        let help = command().render_help().to_string();
        let mut listed = help.lines().filter(|line| line.starts_with("  "));
        assert_eq!(listed.find(|line| line.chars().count() > 80), None, "{help}");
    }
}
