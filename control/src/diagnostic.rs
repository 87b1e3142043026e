//! What is wrong with a config, or deserves a look: what, where, and what to do about it.
//!
//! A [`Problem`] keeps a config from compiling; a [`Remark`] does not. Both are values, and carry a
//! [`Span`] of the config's text until they are shown. All problems of a config are reported at
//! once, in the order of the file. The text of a config is never trusted with a terminal: quoted
//! values are escaped, and control characters of a source line are replaced.

mod problem;
mod remark;
mod source;

use std::fmt::{self, Display};
use std::ops::Range;

use serde::Serialize;
use serde::ser::{SerializeSeq, Serializer};

pub use self::problem::Problem;
pub use self::remark::Remark;
pub(crate) use self::source::Source;
use self::source::{Paint, Place};

/// A range of bytes in a config's text.
pub type Span = Range<usize>;

/// Something and the text it is about.
#[derive(Clone, Debug, PartialEq)]
pub struct Spanned<T> {
    /// Where.
    pub span: Span,
    /// What.
    pub value: T,
}

/// A remark with its place, ready to be shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Notice {
    /// Path of the config.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The remark's [code](Remark::code).
    pub code: &'static str,
    /// The remark's sentence.
    pub message: String,
    /// File, line and column in one, or the command behind what is remarked on.
    #[serde(skip)]
    pub(crate) whereabouts: String,
}

impl Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.whereabouts, self.message)
    }
}

/// Every problem of one config, with the text they are about.
///
/// Shown plainly it is a line each, as `lab.toml:3:1: unknown key "lables" in [[workload]]: did you
/// mean "labels"?`; [`Diagnostics::render`] shows the source too.
#[derive(Clone, Debug, PartialEq)]
pub struct Diagnostics {
    source: Source,
    problems: Vec<Spanned<Problem>>,
}

impl std::error::Error for Diagnostics {}

impl Diagnostics {
    /// Puts `problems` in the order of the file.
    pub(crate) fn new(source: Source, mut problems: Vec<Spanned<Problem>>) -> Self {
        problems.sort_by_key(|problem| (problem.span.start, problem.span.end));
        Self { source, problems }
    }

    /// The problems, in the order of the file.
    pub fn problems(&self) -> impl ExactSizeIterator<Item = &Problem> {
        self.problems.iter().map(|problem| &problem.value)
    }

    /// What to do about a problem, in the words of whoever gave what it is about.
    fn help(&self, problem: &Spanned<Problem>) -> String {
        match self.source.added_at(problem.span.start) {
            Some(_) => problem.value.help_with_arguments(),
            None => problem.value.help(),
        }
    }

    /// For a terminal: each problem with its source line, the place marked, and what to do.
    pub fn render(&self, colour: bool) -> String {
        let paint = Paint { colour };
        let mut text = String::new();
        for problem in &self.problems {
            let help = self.help(problem);
            text += &format!("{}: {}\n", paint.red("error"), paint.bold(&problem.value));
            text += &self.source.excerpt(&problem.span, &help, paint);
            if let Some(first) = problem.value.first_use() {
                text += &self.source.excerpt(first, "first used here", paint);
            }
            text.push('\n');
        }
        let (path, count) = (self.source.path(), self.problems.len());
        let errors = if count == 1 { "1 error".to_owned() } else { format!("{count} errors") };
        text + &format!("{path} does not compile: {errors}\n")
    }
}

impl Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            let Spanned { span, value } = problem;
            let at = |span: &Span| self.source.whereabouts(span.start);
            let begin = if i > 0 { "\n" } else { "" };
            write!(f, "{begin}{}: {value}: {}", at(span), self.help(problem))?;
            if let Some(first) = value.first_use() {
                write!(f, "; first used at {}", at(first))?;
            }
        }
        Ok(())
    }
}

impl Serialize for Diagnostics {
    /// A list of `{file, line, column, length, code, message, help}`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Entry<'a> {
            file: &'a str,
            line: usize,
            column: usize,
            length: usize,
            code: &'a str,
            message: String,
            help: String,
        }
        let mut list = serializer.serialize_seq(Some(self.problems.len()))?;
        for problem in &self.problems {
            let Spanned { span, value } = problem;
            let Place { line, column } = self.source.place(span.start);
            list.serialize_element(&Entry {
                file: self.source.path(),
                line,
                column,
                length: self.source.slice(span).chars().count(),
                code: value.code(),
                message: value.to_string(),
                help: self.help(problem),
            })?;
        }
        list.end()
    }
}

/// The candidate that `given` was most likely meant to be, if one is near enough.
pub(crate) fn nearest<'a>(
    given: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    // A pasted novel is no typing error, and its distance would be slow to compute.
    if given.len() > 64 {
        return None;
    }
    candidates
        .map(|candidate| {
            // Of short words, two letters that changed places are half of the word.
            let slip = if strsim::osa_distance(given, candidate) == 1 { 0.9 } else { 0.0 };
            (strsim::jaro_winkler(given, candidate).max(slip), candidate)
        })
        .filter(|&(likeness, _)| likeness >= 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(a.1)))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unknown_key(text: &str, key: &str) -> Diagnostics {
        let start = text.find(key).expect("the key is in the text");
        let value = Problem::UnknownKey {
            key: key.into(),
            table: "[[workload]]",
            known: vec!["labels", "lane"],
        };
        let problem = Spanned { span: start..start + key.len(), value };
        Diagnostics::new(Source::new("lab.toml", text), vec![problem])
    }

    #[test]
    fn shows_the_line_the_place_and_what_to_do() {
        let diagnostics = unknown_key("# é\n[[workload]]\nlables = 1\n", "lables");
        assert_eq!(
            diagnostics.to_string(),
            "lab.toml:3:1: unknown key \"lables\" in [[workload]]: did you mean \"labels\"?"
        );
        assert_eq!(
            diagnostics.render(false),
            "error: unknown key \"lables\" in [[workload]]\n \
             --> lab.toml:3:1\n  \
             |\n\
             3 | lables = 1\n  \
             | ^^^^^^ did you mean \"labels\"?\n\
             \n\
             lab.toml does not compile: 1 error\n"
        );
        let json = serde_json::to_value(&diagnostics).expect("it is plain data");
        assert_eq!(json[0]["line"], 3);
        assert_eq!(json[0]["length"], 6);
        assert_eq!(json[0]["code"], "unknown-key");
    }

    #[test]
    fn a_config_cannot_write_to_the_terminal() {
        let text = "x = \"\u{1b}[2J\" # bell\u{7}";
        let rendered = unknown_key(text, "\u{1b}[2J").render(false);
        assert!(!rendered.contains(['\u{1b}', '\u{7}']), "{rendered}");
    }

    #[test]
    fn of_a_long_line_the_part_in_question_is_shown() {
        let text = format!("{}lables{}", "x".repeat(10_000), "y".repeat(10_000));
        let rendered = unknown_key(&text, "lables").render(false);
        assert!(rendered.lines().all(|line| line.len() < 200), "{rendered}");
        let lines: Vec<_> = rendered.lines().collect();
        assert_eq!(lines[3].find("lables"), lines[4].find("^^^^^^ did you mean"), "{rendered}");
    }

    #[test]
    fn suggestions_are_near() {
        let known = ["labels", "lane", "kind"];
        assert_eq!(nearest("lables", known.into_iter()), Some("labels"));
        assert_eq!(nearest("kimd", known.into_iter()), Some("kind"));
        assert_eq!(nearest("wbe", ["db", "web"].into_iter()), Some("web"));
        assert_eq!(nearest("zebra", known.into_iter()), None);
    }
}
