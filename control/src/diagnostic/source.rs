//! The text that diagnostics are about: where in it something is, and how that is shown.

use std::fmt::Display;
use std::sync::Arc;

use super::{Notice, Remark, Span, Spanned};

/// Most characters of a source line that are shown.
const EXCERPT_WIDTH: usize = 160;

/// A position for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// From 1.
    pub(super) line: usize,
    /// In characters, from 1.
    pub(super) column: usize,
}

/// A config's text and its name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Source {
    path: String,
    text: Arc<str>,
    /// Where each line begins, in bytes.
    lines: Arc<[usize]>,
    /// Where each table begins that `port add` put behind the file's text, and its workload.
    added: Vec<(usize, String)>,
}

impl Source {
    /// The text of a file.
    pub(crate) fn new(path: &str, text: &str) -> Self {
        Self::with_added(path, text, Vec::new())
    }

    /// A text whose beginning is a file's, line by line; from each of `added` on, in their order, it is a
    /// table of `port add` for the workload of that name, which nobody has seen as a text.
    pub(crate) fn with_added(path: &str, text: &str, added: Vec<(usize, String)>) -> Self {
        let newlines = text.match_indices('\n').map(|(newline, _)| newline + 1);
        let lines = std::iter::once(0).chain(newlines).collect();
        Self { path: path.to_owned(), text: text.into(), lines, added }
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// A remark, as it is shown.
    pub(crate) fn notice(&self, remark: &Spanned<Remark>) -> Notice {
        let Place { line, column } = self.place(remark.span.start);
        let whereabouts = self.whereabouts(remark.span.start);
        let (code, message) = (remark.value.code(), remark.value.to_string());
        Notice { file: self.path.clone(), line, column, code, message, whereabouts }
    }

    /// The workload of the table of `port add` that byte `offset` is in, if it is in one.
    pub(super) fn added_at(&self, offset: usize) -> Option<&str> {
        let (_, workload) = self.added.iter().rfind(|(start, _)| *start <= offset)?;
        Some(workload)
    }

    /// Where byte `offset` is, as `lab.toml:3:1`; or the command that brought it, as `port add cache`.
    pub(super) fn whereabouts(&self, offset: usize) -> String {
        match self.added_at(offset) {
            Some(workload) => format!("port add {workload}"),
            None => {
                let Place { line, column } = self.place(offset);
                format!("{}:{line}:{column}", self.path)
            }
        }
    }

    /// Where byte `offset` is. Any offset has a place, be it inside a character or behind the end.
    pub(super) fn place(&self, offset: usize) -> Place {
        let line = self.lines.partition_point(|&start| start <= offset.min(self.text.len()));
        Place { line, column: self.slice(&(self.line_start(line)..offset)).chars().count() + 1 }
    }

    /// Where line `line`, from 1, begins.
    fn line_start(&self, line: usize) -> usize {
        self.lines.get(line.saturating_sub(1)).copied().unwrap_or(self.text.len())
    }

    /// The text of a span, cut to whole characters that exist.
    pub(super) fn slice(&self, span: &Span) -> &str {
        let floor = |offset: usize| {
            let offset = offset.min(self.text.len());
            (0..=offset).rev().find(|&i| self.text.is_char_boundary(i)).unwrap_or(0)
        };
        let (start, end) = (floor(span.start), floor(span.end));
        &self.text[start..end.max(start)]
    }

    /// The line that `span` begins on, with `label` under it.
    pub(super) fn excerpt(&self, span: &Span, label: &str, paint: Paint) -> String {
        let Place { line, column } = self.place(span.start);
        let source =
            self.slice(&(self.line_start(line)..self.line_start(line + 1))).trim_end().chars();
        // Of a very long line, what is around the place.
        let skipped = if column > EXCERPT_WIDTH { column - EXCERPT_WIDTH / 2 } else { 0 };
        let source = source.skip(skipped).take(EXCERPT_WIDTH);
        let source: String = source.map(|c| if c.is_control() { ' ' } else { c }).collect();
        let indent = column - 1 - skipped;
        let on_this_line = source.chars().count().saturating_sub(indent);
        let marked = self.slice(span).chars().count().min(on_this_line).max(1);

        let number = line.to_string();
        let margin = " ".repeat(number.len());
        let indent = " ".repeat(indent);
        let marks = paint.red("^".repeat(marked));
        let bar = paint.blue('|');
        format!(
            "{margin}{} {}\n{margin} {bar}\n{} {bar} {source}\n{margin} {bar} {indent}{marks} {label}\n",
            paint.blue("-->"),
            self.whereabouts(span.start),
            paint.blue(number),
        )
    }
}

#[derive(Clone, Copy)]
pub(super) struct Paint {
    pub(super) colour: bool,
}

impl Paint {
    pub(super) fn red(self, text: impl Display) -> String {
        self.with("1;31", text)
    }

    fn blue(self, text: impl Display) -> String {
        self.with("1;34", text)
    }

    pub(super) fn bold(self, text: impl Display) -> String {
        self.with("1", text)
    }

    /// ECMA-48 §8.3.117, select graphic rendition.
    fn with(self, sgr: &str, text: impl Display) -> String {
        if self.colour { format!("\u{1b}[{sgr}m{text}\u{1b}[0m") } else { text.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_offset_has_a_place() {
        let source = Source::new("x", "é\nü");
        for offset in 0..10 {
            let _ = source.excerpt(&(offset..offset + 2), "", Paint { colour: true });
        }
        assert_eq!(source.place(100), Place { line: 2, column: 2 });
        assert_eq!(source.slice(&(1..2)), "é", "cut to the characters that begin in it");
    }

    #[test]
    fn what_was_added_is_named_by_its_command() {
        let added = vec![(4, "log".to_owned()), (6, "cache".to_owned())];
        let source = Source::with_added("x", "a\nb\nc\nd\n", added);
        let places = [0, 2, 4, 5, 6, 100].map(|offset| source.whereabouts(offset));
        let (log, cache) = ("port add log", "port add cache");
        assert_eq!(places, ["x:1:1", "x:2:1", log, log, cache, cache]);
    }
}
