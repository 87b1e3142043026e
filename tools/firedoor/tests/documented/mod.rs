//! What docs/commands.md says of a command's JSON, held against what the command prints.

use serde_json::Value;

const DOCUMENT: &str = include_str!("../../../../docs/commands.md");

/// Fails unless `printed`, or its first element if it is an array, has the keys that `command` is said
/// to print, and no others.
pub(crate) fn assert_documented(command: &str, printed: &Value) {
    let object = printed.as_array().map_or(printed, |array| &array[0]);
    let object = object.as_object().unwrap_or_else(|| panic!("{command} prints {printed}"));
    let mut keys: Vec<_> = object.keys().map(String::as_str).collect();
    let mut documented = keys_of(command);
    keys.sort_unstable();
    documented.sort_unstable();
    assert_eq!(keys, documented, "{command}");
}

/// The outermost keys of a command's shape, as `rules` and `from` of `[{from, rules: [{rule}]}]`.
fn keys_of(command: &str) -> Vec<&'static str> {
    let row = format!("| `{command}` | `");
    let row = DOCUMENT.lines().find_map(|line| line.strip_prefix(&row));
    let shape = row.and_then(|row| row.split('`').next());
    let shape = shape.unwrap_or_else(|| panic!("{command} is not documented"));
    let shape = shape.trim_start_matches('[').trim_start_matches('{');
    let mut depth = 0;
    shape
        .split_inclusive(['{', '}', '[', ']', ',', ':'])
        .filter_map(|part| {
            let (word, end) = part.split_at(part.len() - 1);
            let is_outermost = depth == 0 && !word.trim().is_empty();
            match end {
                "{" | "[" => depth += 1,
                "}" | "]" => depth -= 1,
                _ => {}
            }
            is_outermost.then_some(word.trim())
        })
        .collect()
}
