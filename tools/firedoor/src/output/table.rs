//! Rows under a heading.
//!
//! Columns line up by plain text, so colour never moves one. On a terminal that is too narrow, texts
//! are broken between words first; where that is not enough, each row takes several lines, which all
//! have columns of their own. Nothing is left out: what a row says does not hang on the terminal.
//! Where there is no terminal, a row is a line, for `grep` and `awk`.

use std::fmt::Display;
use std::iter;
use std::ops::Range;

use super::{Tone, paint};

/// Characters between columns.
const GAP: usize = 2;
/// Characters by which the second line of a row, and all further ones, are moved to the right.
const INDENT: usize = 4;

/// One field of a table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A field in a tone.
    pub(crate) fn new(tone: Tone, text: impl Display) -> Self {
        Self { text: text.to_string(), tone }
    }
}

impl<T: Display> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(Tone::Plain, text)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Align {
    Left,
    Right,
}

/// Rows under a heading, columns two spaces apart.
///
/// ```text
/// workload  port     rx
/// web          1  1,204
/// ```
#[derive(Clone, Debug)]
pub(crate) struct Table {
    headings: Vec<Cell>,
    aligns: Vec<Align>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table. A heading that starts with `>` makes a column of numbers, aligned right.
    pub(crate) fn new<const N: usize>(headings: [&str; N]) -> Self {
        Self::with_headings(headings)
    }

    /// Likewise, where the number of columns is known only when the program runs.
    pub(crate) fn with_headings(headings: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let column = |heading: &str| match heading.strip_prefix('>') {
            Some(number) => (Cell::new(Tone::Dim, number), Align::Right),
            None => (Cell::new(Tone::Dim, heading), Align::Left),
        };
        let (headings, aligns) = headings.into_iter().map(|h| column(h.as_ref())).unzip();
        Self { headings, aligns, rows: Vec::new() }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = impl Into<Cell>>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// Whether it has no row yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Characters of its widest row, all on one line.
    pub(crate) fn width(&self) -> usize {
        with_gaps(&self.widths())
    }

    /// Characters of its widest row, all in one line, with texts broken wherever they can be.
    pub(crate) fn least_width(&self) -> usize {
        with_gaps(&self.least_widths())
    }

    /// Its text, each row on one line.
    pub(crate) fn render(&self, colour: bool) -> String {
        self.draw(&Layout::one_line(self.widths()), colour)
    }

    /// Its text in lines of so many characters at most, if no single word is longer.
    pub(crate) fn render_within(&self, columns: usize, colour: bool) -> String {
        let layout = if self.least_width() <= columns {
            Layout::one_line(self.narrowed(columns))
        } else {
            let room = columns.saturating_sub(INDENT);
            let widths = iter::zip(self.widths(), self.least_widths());
            Layout::folded(widths.map(|(width, least)| width.min(room).max(least)).collect(), room)
        };
        self.draw(&layout, colour)
    }

    /// What each column takes up.
    fn widths(&self) -> Vec<usize> {
        self.measure(|cell, _| length(&cell.text))
    }

    /// What each column takes up if its texts are broken wherever they can be. Numbers and their
    /// units stay together.
    fn least_widths(&self) -> Vec<usize> {
        self.measure(|cell, is_number| match is_number {
            true => length(&cell.text),
            false => cell.text.split(' ').map(length).max().unwrap_or_default(),
        })
    }

    /// The largest of what `measure` says of each column's cells. It is told whether the cell is a
    /// number; headings are none.
    fn measure(&self, measure: impl Fn(&Cell, bool) -> usize) -> Vec<usize> {
        let mut widths: Vec<_> = self.headings.iter().map(|cell| measure(cell, false)).collect();
        for row in &self.rows {
            for ((width, cell), align) in widths.iter_mut().zip(row).zip(&self.aligns) {
                *width = (*width).max(measure(cell, *align == Align::Right));
            }
        }
        widths
    }

    /// Widths for rows of so many characters, or as near as breaking texts brings them: what is
    /// missing is taken from the widest.
    fn narrowed(&self, columns: usize) -> Vec<usize> {
        let (mut widths, least) = (self.widths(), self.least_widths());
        while with_gaps(&widths) > columns {
            let can_shrink = (0..widths.len()).filter(|&i| widths[i] > least[i]);
            let Some(widest) = can_shrink.max_by_key(|&i| widths[i]) else { break };
            widths[widest] -= 1;
        }
        widths
    }

    fn draw(&self, layout: &Layout, colour: bool) -> String {
        let mut drawn = String::new();
        for row in iter::once(&self.headings).chain(&self.rows) {
            for (i, columns) in layout.lines.iter().enumerate() {
                let indent = if i == 0 { 0 } else { INDENT };
                let cells = columns.clone().filter_map(|column| {
                    let (cell, width) = (row.get(column)?, layout.widths[column]);
                    Some((cell, broken(&cell.text, width), width, self.aligns[column]))
                });
                let cells: Vec<_> = cells.collect();
                let height = cells.iter().map(|(_, parts, ..)| parts.len()).max();
                for part in 0..height.unwrap_or_default() {
                    let mut line = " ".repeat(indent);
                    for (cell, parts, width, align) in &cells {
                        let text = parts.get(part).map_or("", String::as_str);
                        line += &aligned(text, *width, *align, cell.tone, colour);
                        line += &" ".repeat(GAP);
                    }
                    drawn += line.trim_end();
                    drawn.push('\n');
                }
            }
        }
        drawn
    }
}

/// Where the columns of a row stand.
struct Layout {
    /// Characters of each column.
    widths: Vec<usize>,
    /// The columns of each line.
    lines: Vec<Range<usize>>,
}

impl Layout {
    fn one_line(widths: Vec<usize>) -> Self {
        let all = 0..widths.len();
        Self { widths, lines: iter::once(all).collect() }
    }

    /// As few lines of `room` characters as the columns fit in, and these about equally long.
    fn folded(widths: Vec<usize>, room: usize) -> Self {
        let fewest = filled(&widths, room).len();
        let narrowest = (0..room).find(|&room| filled(&widths, room).len() <= fewest);
        let lines = filled(&widths, narrowest.unwrap_or(room));
        Self { widths, lines }
    }
}

/// The columns of each line, if every line takes as many as it has room for.
fn filled(widths: &[usize], room: usize) -> Vec<Range<usize>> {
    let mut lines: Vec<Range<usize>> = Vec::new();
    for column in 0..widths.len() {
        match lines.last_mut() {
            Some(line) if with_gaps(&widths[line.start..=column]) <= room => line.end = column + 1,
            _ => lines.push(column..column + 1),
        }
    }
    lines
}

/// Characters that columns take up side by side.
fn with_gaps(widths: &[usize]) -> usize {
    widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1)
}

fn length(text: &str) -> usize {
    text.chars().count()
}

/// A text in lines of so many characters, broken between words. A longer word has a line of its own.
fn broken(text: &str, width: usize) -> Vec<String> {
    if length(text) <= width {
        return vec![text.to_owned()];
    }
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if length(line) + 1 + length(word) <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// A text in a tone, with spaces up to a width.
fn aligned(text: &str, width: usize, align: Align, tone: Tone, colour: bool) -> String {
    let padding = " ".repeat(width.saturating_sub(length(text)));
    if text.is_empty() {
        return padding;
    }
    let text = paint(colour, tone, text);
    match align {
        Align::Left => text + &padding,
        Align::Right => padding + &text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text without its escape sequences.
    fn without_colour(mut text: &str) -> String {
        let mut plain = String::new();
        while let Some((before, after)) = text.split_once('\u{1b}') {
            plain += before;
            text = after.split_once('m').expect("an escape sequence ends with m").1;
        }
        plain + text
    }

    fn ports() -> Table {
        let mut table = Table::new(["workload", "state", ">rx frames"]);
        table.row([Cell::from("web"), Cell::new(Tone::Good, "up"), Cell::new(Tone::Good, "1,204")]);
        table.row([
            Cell::from("a-long-name"),
            Cell::new(Tone::Bad, "failed: no such device"),
            Cell::from(7),
        ]);
        table
    }

    #[test]
    fn columns_line_up_whatever_the_colour() {
        let plain = "\
workload     state                   rx frames
web          up                          1,204
a-long-name  failed: no such device          7
";
        assert_eq!(ports().render(false), plain);
        assert_eq!(ports().render_within(80, false), plain);
        let coloured = ports().render(true);
        assert!(coloured.contains("\u{1b}[32m1,204\u{1b}[0m"), "{coloured:?}");
        assert_eq!(without_colour(&coloured), plain);
    }

    #[test]
    fn where_it_is_narrow_texts_are_broken_between_words() {
        let narrow = "\
workload     state        rx frames
web          up               1,204
a-long-name  failed: no           7
             such device
";
        assert_eq!(ports().render_within(35, false), narrow);
        assert_eq!(without_colour(&ports().render_within(35, true)), narrow);
    }

    #[test]
    fn where_it_is_too_narrow_rows_take_lines_about_equally_long() {
        let mut flows = Table::new(["from", "to", "rule", ">frames", ">bytes"]);
        flows.row(["web", "api", "web-to-api", "12", "1.2 kB"].map(Cell::from));
        flows.row(["db", "intruder", "default", "7", "300 B"].map(Cell::from));
        let folded = "\
from  to        rule
    frames   bytes
web   api       web-to-api
        12  1.2 kB
db    intruder  default
         7   300 B
";
        assert_eq!(flows.render_within(30, false), folded);
    }

    #[test]
    fn no_width_loses_a_word_or_makes_a_line_too_long() {
        let words = |text: &str| {
            let mut words: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
            words.sort();
            words
        };
        let all = words(&ports().render(false));
        for columns in 0..60 {
            let text = ports().render_within(columns, false);
            assert_eq!(words(&text), all, "{columns}");
            // No word can be broken, and none is longer than this.
            let most = columns.max("a-long-name".len() + INDENT);
            assert!(text.lines().all(|line| length(line) <= most), "{columns}:\n{text}");
        }
    }
}
