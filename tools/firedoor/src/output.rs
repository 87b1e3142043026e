//! What a person or a script sees: results on standard output, everything else on standard error.
//!
//! Colour is used only on a terminal and without `NO_COLOR`, and only there tables are fitted to a
//! width. JSON is one object or array, without colour.

use std::fmt::{self, Display};
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use firedoor_control::diagnostic::Diagnostics;
use serde::Serialize;

mod table;

pub(crate) use table::{Cell, Table};

/// The answer is yes, or it is done.
pub(crate) const YES: ExitCode = ExitCode::SUCCESS;
/// The answer is no: denied, differs, does not compile.
pub(crate) const NO: ExitCode = ExitCode::FAILURE;

/// It could not be done.
pub(crate) fn failed() -> ExitCode {
    ExitCode::from(2)
}

/// What a piece of text is to the reader; it decides the colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    /// As it is.
    #[default]
    Plain,
    /// A heading, or the thing that matters.
    Strong,
    /// Allowed, alive, done.
    Good,
    /// Denied, dead, wrong.
    Bad,
    /// Deserves a look.
    Warn,
    /// An aside.
    Dim,
}

impl Tone {
    fn style(self) -> Style {
        let colour = |c: AnsiColor| c.on_default();
        match self {
            Self::Plain => Style::new(),
            Self::Strong => Style::new().bold(),
            Self::Good => colour(AnsiColor::Green),
            Self::Bad => colour(AnsiColor::Red),
            Self::Warn => colour(AnsiColor::Yellow),
            Self::Dim => Style::new().dimmed(),
        }
    }
}

/// Where a command's answer goes. Writing to it writes to standard output.
pub(crate) struct Output {
    stdout: BufWriter<Stdout>,
    columns: Option<usize>,
    colour: bool,
    stderr_colour: bool,
}

impl Output {
    /// Standard output and standard error of this process.
    pub(crate) fn new() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        // A terminal that knows no width, as over a serial line, says 0.
        let columns = terminal_size::terminal_size_of(io::stdout())
            .map(|(terminal_size::Width(columns), _)| columns.into())
            .filter(|&columns| columns > 0);
        Self {
            stdout: BufWriter::new(io::stdout()),
            columns,
            colour: wanted && io::stdout().is_terminal(),
            stderr_colour: wanted && io::stderr().is_terminal(),
        }
    }

    /// `text` as it should look on standard output.
    pub(crate) fn paint(&self, tone: Tone, text: impl Display) -> String {
        paint(self.colour, tone, text)
    }

    /// Prints `value` as JSON, and nothing else.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut self.stdout, value)?;
        writeln!(self.stdout)
    }

    /// Prints a table, fitted to the terminal if it goes to one.
    pub(crate) fn table(&mut self, table: &Table) -> io::Result<()> {
        let text = match self.columns {
            Some(columns) => table.render_within(columns, self.colour),
            None => table.render(self.colour),
        };
        write!(self.stdout, "{text}")
    }

    /// Characters on a line of the terminal that standard output goes to.
    pub(crate) fn columns(&self) -> Option<usize> {
        self.columns
    }

    /// Tells something that is not part of the answer, on standard error.
    pub(crate) fn note(&mut self, text: impl Display) {
        self.say(Tone::Dim, "note", text);
    }

    /// Tells something that deserves a look, on standard error.
    pub(crate) fn warn(&mut self, text: impl Display) {
        self.say(Tone::Warn, "warning", text);
    }

    /// Tells why something could not be done, and what that came of.
    pub(crate) fn error(&mut self, error: &anyhow::Error) {
        if let Some(diagnostics) = error.downcast_ref::<Diagnostics>() {
            let _ = self.stdout.flush();
            let _ = write!(io::stderr(), "{}", diagnostics.render(self.stderr_colour));
            return;
        }
        for (tone, word, text) in reasons(error) {
            self.say(tone, word, text);
        }
    }

    /// Whether standard error shows colour.
    pub(crate) fn stderr_colour(&self) -> bool {
        self.stderr_colour
    }

    /// Whether standard output shows colour.
    pub(crate) fn colour(&self) -> bool {
        self.colour
    }

    fn say(&mut self, tone: Tone, word: &str, text: impl Display) {
        // What was printed before must also stand before. A broken pipe is found by the next write.
        let _ = self.stdout.flush();
        let word = paint(self.stderr_colour, tone, word);
        let _ = writeln!(io::stderr(), "{word}: {text}");
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stdout.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stdout.flush()
    }
}

/// An error and its causes, without those that the sentence before has told already.
fn reasons(error: &anyhow::Error) -> Vec<(Tone, &'static str, String)> {
    let mut reasons = vec![(Tone::Bad, "error", error.to_string())];
    let mut told = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !told.contains(&cause) {
            reasons.push((Tone::Dim, "  because", cause.clone()));
        }
        told = cause;
    }
    reasons
}

fn paint(colour: bool, tone: Tone, text: impl Display) -> String {
    let style = if colour { tone.style() } else { Style::new() };
    format!("{style}{text}{style:#}")
}

/// A count with thousands apart, as in `1,234,567`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Count(pub(crate) u64);

impl Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        let mut text = String::with_capacity(digits.len() * 4 / 3);
        for (i, digit) in digits.chars().enumerate() {
            if i > 0 && (digits.len() - i).is_multiple_of(3) {
                text.push(',');
            }
            text.push(digit);
        }
        f.pad(&text)
    }
}

/// Bytes in the largest unit that keeps them above one, as in `1.2 MB` (powers of 1,000).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes(pub(crate) u64);

impl Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
        if self.0 < 1_000 {
            return f.pad(&format!("{} B", self.0));
        }
        let mut value = self.0 as f64 / 1e3;
        let mut unit = 0;
        while value >= 999.95 && unit + 1 < UNITS.len() {
            value /= 1e3;
            unit += 1;
        }
        f.pad(&format!("{value:.1} {}", UNITS[unit]))
    }
}

/// A span of time in its two largest units, as in `3m 20s`, `2d 4h`, `0.5s`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Age {
    /// Milliseconds.
    pub(crate) ms: u64,
}

impl Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secs = self.ms / 1_000;
        let (minutes, hours, days) = (secs / 60, secs / 3_600, secs / 86_400);
        f.pad(&match secs {
            0..10 => format!("{}.{}s", secs, self.ms % 1_000 / 100),
            10..60 => format!("{secs}s"),
            60..3_600 => format!("{minutes}m {}s", secs % 60),
            3_600..86_400 => format!("{hours}h {}m", minutes % 60),
            _ => format!("{days}d {}h", hours % 24),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let texts = |error| reasons(&error).into_iter().map(|(.., text)| text).collect::<Vec<_>>();
        let cause = || io::Error::other("it is full");
        let untold = anyhow::Error::new(cause()).context("cannot write x");
        assert_eq!(texts(untold), ["cannot write x", "it is full"]);
        let told = anyhow::Error::new(cause()).context("cannot write x: it is full");
        assert_eq!(texts(told), ["cannot write x: it is full"]);
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(Count(0).to_string(), "0");
        assert_eq!(Count(999).to_string(), "999");
        assert_eq!(Count(1_234_567).to_string(), "1,234,567");
        assert_eq!(Bytes(999).to_string(), "999 B");
        assert_eq!(Bytes(1_200_000).to_string(), "1.2 MB");
        assert_eq!(Bytes(999_999).to_string(), "1.0 MB");
        assert_eq!(Bytes(u64::MAX).to_string(), "18.4 EB");
        assert_eq!(Age { ms: 520 }.to_string(), "0.5s");
        assert_eq!(Age { ms: 200_000 }.to_string(), "3m 20s");
        assert_eq!(Age { ms: 187_200_000 }.to_string(), "2d 4h");
    }
}
