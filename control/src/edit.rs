//! Adding a workload to a config's text and taking one out, for `port add` and `port del`.
//!
//! Comments and layout of the rest stay as they are, and every line stays where it is, so that places in
//! the changed text are places in the file. Whether the result compiles is for
//! [`compile`](crate::compile::compile) to say.

use toml_edit::{ArrayOfTables, DocumentMut, Item};

const KEY: &str = "workload";

/// Why a config's text cannot be changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// The config is not TOML.
    #[error("the config is not TOML: {0}")]
    Config(String),
    /// What is to be added is not TOML.
    #[error("the workload is not TOML: {0}")]
    Workload(String),
    /// What is to be added is not one workload.
    #[error("this is not one [[workload]] table: give one, and nothing else")]
    NotOneWorkload,
    /// The config's workloads are an inline array.
    #[error("the config's workloads are not written as [[workload]] tables: rewrite them so")]
    NotTables,
    /// No workload has this name.
    #[error("there is no workload {0:?}: `firedoor ports` lists them")]
    NoSuchWorkload(String),
}

/// `config` with the one `[[workload]]` table of `workload` behind it. The header may be left out.
///
/// # Errors
/// If either is not what it should be.
pub fn add_workload(config: &str, workload: &str) -> Result<String, EditError> {
    tables(&mut document(config).map_err(EditError::Config)?)?;

    let bare = document(workload).map_err(EditError::Workload)?;
    let header = if bare.contains_key(KEY) { "" } else { "[[workload]]\n" };
    let table = format!("{header}{}\n", workload.trim());
    let mut added = document(&table).map_err(EditError::Workload)?;
    let one = tables(&mut added)?.is_some_and(|tables| tables.len() == 1);
    if !one || added.len() != 1 {
        return Err(EditError::NotOneWorkload);
    }
    Ok(format!("{}\n\n{table}", config.trim_end()))
}

/// `config` without the `[[workload]]` table named `name` and the comment above it, with empty lines in
/// their place.
///
/// # Errors
/// If the config has no such table.
pub fn remove_workload(text: &str, name: &str) -> Result<String, EditError> {
    let mut document = document(text).map_err(EditError::Config)?;
    let missing = || EditError::NoSuchWorkload(name.to_owned());
    let tables = tables(&mut document)?.ok_or_else(missing)?;
    let named = |table: &toml_edit::Table| table.get("name").and_then(Item::as_str) == Some(name);
    let index = tables.iter().position(named).ok_or_else(missing)?;
    tables.remove(index);
    if tables.is_empty() {
        document.remove(KEY);
    }
    Ok(with_lines_in_place(text, &document.to_string()))
}

/// `rest`, which is `text` without some lines that stood together, with empty ones in their place.
fn with_lines_in_place(text: &str, rest: &str) -> String {
    let (before, after): (Vec<_>, Vec<_>) = (text.lines().collect(), rest.lines().collect());
    let same = std::iter::zip(before.iter().rev(), after.iter().rev());
    let behind = same.take_while(|(before, after)| before == after).count();
    let (head, tail) = after.split_at(after.len() - behind);
    let gone = vec![""; before.len().saturating_sub(after.len())];
    [head, &gone, tail].concat().join("\n") + "\n"
}

fn document(text: &str) -> Result<DocumentMut, String> {
    text.parse().map_err(|error: toml_edit::TomlError| error.message().to_owned())
}

/// The `[[workload]]` tables, if there are any.
fn tables(document: &mut DocumentMut) -> Result<Option<&mut ArrayOfTables>, EditError> {
    match document.get_mut(KEY) {
        None => Ok(None),
        Some(Item::ArrayOfTables(tables)) => Ok(Some(tables)),
        Some(_) => Err(EditError::NotTables),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "\
# The lab.
[switch]
name = \"lab0\" # its name

# The shop's face.
[[workload]]
name = \"web\"
kind = \"container\"

[[workload]]
name = \"api\"
kind = \"container\"

[[rule]] # the only one
name = \"r\"
";

    #[test]
    fn adds_with_and_without_header() {
        let with = add_workload(CONFIG, "[[workload]]\nname = \"db\"\n").expect("it can be added");
        let without = add_workload(CONFIG, "name = \"db\"").expect("it can be added");
        assert_eq!(with, without);
        assert!(with.starts_with(CONFIG));
        assert!(with.ends_with("\n\n[[workload]]\nname = \"db\"\n"));
    }

    #[test]
    fn removes_what_was_added_and_nothing_else() {
        let with = add_workload(CONFIG, "name = \"db\"").expect("it can be added");
        let without = remove_workload(&with, "db").expect("it is there");
        assert_eq!(without.trim_end(), CONFIG.trim_end());

        let without = remove_workload(CONFIG, "web").expect("it is there");
        let line = |text: &str, of: &str| text.lines().position(|line| line == of);
        for of in ["[switch]", "name = \"api\"", "[[rule]] # the only one"] {
            assert_eq!(line(&without, of), line(CONFIG, of), "{without}");
        }
        assert!(!without.contains("web") && !without.contains("The shop's face"));
        assert!(without.contains("# its name") && without.contains("# the only one"));
    }

    #[test]
    fn refuses_what_is_not_one_workload() {
        let add = |workload| add_workload(CONFIG, workload).expect_err("it cannot be added");
        assert!(matches!(add("name = "), EditError::Workload(_)));
        assert_eq!(add("workload = 1"), EditError::NotTables);
        assert_eq!(add("[[workload]]\n[[workload]]"), EditError::NotOneWorkload);
        assert_eq!(add("[[workload]]\n[[rule]]"), EditError::NotOneWorkload);
        assert_eq!(add_workload("workload = []", ""), Err(EditError::NotTables));
        assert_eq!(remove_workload(CONFIG, "x"), Err(EditError::NoSuchWorkload("x".into())));
    }
}
