//! Reading one TOML table, and telling everything that is wrong with it.

use std::collections::BTreeSet;

use jiff::civil::Date;
use toml::de::{DeTable, DeValue};

use super::is_name;
use crate::diagnostic::{Problem, Span, Spanned};

type Value<'i> = toml::Spanned<DeValue<'i>>;

/// One table being read. Keys are asked for by name; [`Reader::finish`] reports the rest.
pub(super) struct Reader<'t, 'i> {
    name: &'static str,
    span: Span,
    entries: &'t DeTable<'i>,
    known: Vec<&'static str>,
    seen: BTreeSet<String>,
    problems: &'t mut Vec<Spanned<Problem>>,
}

impl<'t, 'i> Reader<'t, 'i> {
    pub(super) fn new(
        name: &'static str,
        span: Span,
        entries: &'t DeTable<'i>,
        problems: &'t mut Vec<Spanned<Problem>>,
    ) -> Self {
        Self { name, span, entries, known: Vec::new(), seen: BTreeSet::new(), problems }
    }

    /// Reports the keys that nobody asked for.
    pub(super) fn finish(self) {
        for key in self.entries.keys().filter(|key| !self.seen.contains(key.get_ref().as_ref())) {
            let value = Problem::UnknownKey {
                key: key.get_ref().clone().into_owned(),
                table: self.name,
                known: self.known.clone(),
            };
            self.problems.push(Spanned { span: key.span(), value });
        }
    }

    /// Reports something.
    pub(super) fn problem(&mut self, span: Span, value: Problem) {
        self.problems.push(Spanned { span, value });
    }

    /// Reports that a key is absent.
    pub(super) fn missing(&mut self, key: &'static str, example: &'static str) {
        let problem = Problem::Missing { table: self.name.to_owned(), key, example };
        self.problem(self.span.clone(), problem);
    }

    /// Reports a key if it is absent.
    pub(super) fn require(&mut self, key: &'static str, example: &'static str) {
        if !self.has(key) {
            self.missing(key, example);
        }
    }

    /// Where the table is.
    pub(super) fn span(&self) -> Span {
        self.span.clone()
    }

    /// Where the value of `key` is, or the table if there is none.
    pub(super) fn span_of(&self, key: &str) -> Span {
        self.entries.get(key).map_or_else(|| self.span(), toml::Spanned::span)
    }

    /// Whether the table has `key`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Whether the table has a key that is none of `words`.
    pub(super) fn has_others(&self, words: &[&str]) -> bool {
        self.entries.keys().any(|key| !words.contains(&key.get_ref().as_ref()))
    }

    /// Where problems are told that this reader cannot find.
    pub(super) fn problems(&mut self) -> &mut Vec<Spanned<Problem>> {
        self.problems
    }

    /// Every key that nobody asked for yet, in a table whose author chooses the keys.
    pub(super) fn rest(&mut self) -> Vec<(Spanned<String>, &'t Value<'i>)> {
        let rest: Vec<_> = self
            .entries
            .iter()
            .filter(|(key, _)| !self.seen.contains(key.get_ref().as_ref()))
            .map(|(key, value)| {
                let name = key.get_ref().clone().into_owned();
                (Spanned { span: key.span(), value: name }, value)
            })
            .collect();
        self.seen.extend(rest.iter().map(|(key, _)| key.value.clone()));
        rest
    }

    /// A string.
    pub(super) fn text(
        &mut self,
        key: &'static str,
        expected: &'static str,
    ) -> Option<Spanned<String>> {
        let value = self.take(key)?;
        text(key, expected, value, self.problems)
    }

    /// A string that means something.
    pub(super) fn parsed<T>(
        &mut self,
        key: &'static str,
        expected: &'static str,
        parse: impl Fn(&str) -> Result<T, Problem>,
    ) -> Option<Spanned<T>> {
        let text = self.text(key, expected)?;
        parsed(text, parse, self.problems)
    }

    /// The name that a table must have.
    pub(super) fn name(&mut self, example: &'static str) -> Option<Spanned<String>> {
        self.require("name", example);
        self.parsed("name", "a string, as \"web\"", name)
    }

    /// One word of a few.
    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&'static str, T)],
    ) -> Option<T> {
        let choose = |text: &str| {
            let choice = choices.iter().find(|(word, _)| *word == text);
            choice.map(|&(_, value)| value).ok_or_else(|| Problem::UnknownValue {
                key,
                value: text.to_owned(),
                known: choices.iter().map(|&(word, _)| word).collect(),
            })
        };
        self.parsed(key, "a string", choose).map(|choice| choice.value)
    }

    /// A number from `first` to `last`.
    pub(super) fn number<T: TryFrom<u32>>(
        &mut self,
        key: &'static str,
        first: u32,
        last: u32,
    ) -> Option<T> {
        let value = self.take(key)?;
        number(key, value, first, last, self.problems)
    }

    /// True or false.
    pub(super) fn flag(&mut self, key: &'static str) -> Option<bool> {
        let value = self.take(key)?;
        let flag = value.get_ref().as_bool();
        if flag.is_none() {
            self.problems.push(wrong_type(key, "true or false", value));
        }
        flag
    }

    /// A day, as a string or as a TOML date.
    pub(super) fn date(&mut self, key: &'static str) -> Option<Spanned<Date>> {
        let value = self.take(key)?;
        let text = match value.get_ref() {
            DeValue::Datetime(date) => Spanned { span: value.span(), value: date.to_string() },
            _ => text(key, "a date, as \"2027-01-01\"", value, self.problems)?,
        };
        let date =
            |text: &str| text.parse().map_err(|_| Problem::BadDate { value: text.to_owned() });
        parsed(text, date, self.problems)
    }

    /// What `read` makes of the value at `key`.
    pub(super) fn read<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&Value<'i>, &mut Vec<Spanned<Problem>>) -> Option<T>,
    ) -> Option<T> {
        read(self.take(key)?, self.problems)
    }

    /// What `read` makes of one value or of each of a list.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        read: impl FnMut(&Value<'i>, &mut Vec<Spanned<Problem>>) -> Option<T>,
    ) -> Vec<T> {
        self.take(key).map(|value| list(key, value, self.problems, read)).unwrap_or_default()
    }

    /// One name or a list of them.
    pub(super) fn names(&mut self, key: &'static str) -> Vec<Spanned<String>> {
        self.list(key, |value, problems| {
            let text = text(key, "a name or a list of names", value, problems)?;
            parsed(text, name, problems)
        })
    }

    /// What `read` makes of the table at `key`.
    pub(super) fn table<T>(
        &mut self,
        key: &'static str,
        name: &'static str,
        read: impl Fn(&mut Reader<'_, 'i>) -> Option<T>,
    ) -> Option<T> {
        let value = self.take(key)?;
        table((key, "a table"), name, value, self.problems, &read)
    }

    /// What `read` makes of one table at `key`, or of each of a list of them.
    pub(super) fn tables<T>(
        &mut self,
        key: &'static str,
        expected: &'static str,
        name: &'static str,
        read: impl Fn(&mut Reader<'_, 'i>) -> Option<T>,
    ) -> Vec<T> {
        self.list(key, |value, problems| table((key, expected), name, value, problems, &read))
    }

    fn take(&mut self, key: &'static str) -> Option<&'t Value<'i>> {
        self.known.push(key);
        self.seen.insert(key.to_owned());
        self.entries.get(key)
    }
}

/// What `read` makes of a table.
fn table<'i, T>(
    (key, expected): (&'static str, &'static str),
    name: &'static str,
    value: &Value<'i>,
    problems: &mut Vec<Spanned<Problem>>,
    read: &impl Fn(&mut Reader<'_, 'i>) -> Option<T>,
) -> Option<T> {
    let Some(entries) = value.get_ref().as_table() else {
        problems.push(wrong_type(key, expected, value));
        return None;
    };
    let mut reader = Reader::new(name, value.span(), entries, problems);
    let result = read(&mut reader);
    reader.finish();
    result
}

/// What `read` makes of `value`, or of each of its elements if it is a list.
pub(super) fn list<'i, T>(
    key: &'static str,
    value: &Value<'i>,
    problems: &mut Vec<Spanned<Problem>>,
    mut read: impl FnMut(&Value<'i>, &mut Vec<Spanned<Problem>>) -> Option<T>,
) -> Vec<T> {
    let elements = match value.get_ref().as_array() {
        Some(array) => array.as_ref(),
        None => std::slice::from_ref(value),
    };
    if elements.is_empty() {
        problems.push(Spanned { span: value.span(), value: Problem::EmptyList { key } });
    }
    elements.iter().filter_map(|element| read(element, problems)).collect()
}

/// A string.
pub(super) fn text(
    key: &'static str,
    expected: &'static str,
    value: &Value<'_>,
    problems: &mut Vec<Spanned<Problem>>,
) -> Option<Spanned<String>> {
    match value.get_ref().as_str() {
        Some(text) => Some(Spanned { span: value.span(), value: text.to_owned() }),
        None => {
            problems.push(wrong_type(key, expected, value));
            None
        }
    }
}

/// What a string means.
pub(super) fn parsed<T>(
    text: Spanned<String>,
    parse: impl Fn(&str) -> Result<T, Problem>,
    problems: &mut Vec<Spanned<Problem>>,
) -> Option<Spanned<T>> {
    let Spanned { span, value } = text;
    match parse(&value) {
        Ok(value) => Some(Spanned { span, value }),
        Err(value) => {
            problems.push(Spanned { span, value });
            None
        }
    }
}

/// A number from `first` to `last`.
pub(super) fn number<T: TryFrom<u32>>(
    key: &'static str,
    value: &Value<'_>,
    first: u32,
    last: u32,
    problems: &mut Vec<Spanned<Problem>>,
) -> Option<T> {
    let Some(integer) = value.get_ref().as_integer() else {
        problems.push(wrong_type(key, "a number", value));
        return None;
    };
    let number = u32::from_str_radix(integer.as_str(), integer.radix()).ok();
    let number = number.filter(|number| (first..=last).contains(number));
    let number = number.and_then(|number| T::try_from(number).ok());
    if number.is_none() {
        let problem = Problem::OutOfRange { key, value: integer.to_string(), first, last };
        problems.push(Spanned { span: value.span(), value: problem });
    }
    number
}

fn name(text: &str) -> Result<String, Problem> {
    if is_name(text) {
        Ok(text.to_owned())
    } else {
        Err(Problem::BadName { value: text.to_owned() })
    }
}

fn wrong_type(key: &'static str, expected: &'static str, value: &Value<'_>) -> Spanned<Problem> {
    let problem = Problem::WrongType { key, expected, found: value.get_ref().type_str() };
    Spanned { span: value.span(), value: problem }
}
