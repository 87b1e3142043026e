//! A config in pieces: a large text without all of it in memory as TOML at once.
//!
//! A rule's text becomes sixty times as much TOML, and little of that is kept. But the tables that a
//! config has many of stand under headings of their own, `[[rule]]` and the like, so each is TOML by
//! itself: it is parsed, read and forgotten before the next one.
//!
//! This is for configs without a fault. Whatever is wrong or just unusual makes [`read`] give up; the
//! text is then parsed as a whole, which finds what is wrong and where. So the only promise to keep is
//! that what is read here is what would have been read there.

use std::mem;
use std::ops::Range;

use toml::de::{DeTable, DeValue};
use toml_parser::Source;
use toml_parser::lexer::TokenKind;

use super::reader::Reader;
use super::{Intent, Tables, switch};

/// The intent of a config in which nothing is wrong; `None` if the text must be looked at as a whole.
pub(super) fn read(text: &str) -> Option<Intent> {
    let pieces = pieces(text)?;
    let mut problems = Vec::new();

    let rest = without(text, &pieces);
    let rest = DeTable::parse(&rest).ok()?;
    let mut config = Reader::new("the config", 0..0, rest.get_ref(), &mut problems);
    let switch = config.table("switch", "[switch]", switch)?;
    config.finish();

    let mut tables = Tables::default();
    for piece in pieces {
        let start = piece.start;
        let mut table = DeTable::parse(text.get(piece)?).ok()?.into_inner();
        move_values(&mut table, start);
        tables.read(&mut Reader::new("the config", 0..0, &table, &mut problems));
        if !problems.is_empty() {
            return None;
        }
    }
    problems.is_empty().then(|| tables.with_switch(switch))
}

/// Where each `[[workload]]`, `[[service]]`, `[[group]]` and `[[rule]]` stands with all that belongs to
/// it. `None` if that cannot be told.
fn pieces(text: &str) -> Option<Vec<Range<usize>>> {
    let mut pieces: Vec<Range<usize>> = Vec::new();
    // Whether what stands here belongs to the last piece.
    let mut in_piece = false;
    let mut depth = 0usize;
    let mut is_line_start = true;
    for token in Source::new(text).lex() {
        let at = token.span().start();
        match token.kind() {
            TokenKind::Whitespace => {}
            TokenKind::Newline => is_line_start = true,
            TokenKind::LeftSquareBracket | TokenKind::LeftCurlyBracket => {
                // A heading, and no value of several lines.
                if depth == 0 && is_line_start {
                    if in_piece {
                        pieces.last_mut()?.end = at;
                    }
                    in_piece = text.get(at..)?.starts_with("[[");
                    if in_piece {
                        is_of_many(text.get(at..)?).then_some(())?;
                        pieces.push(at..text.len());
                    }
                }
                depth += 1;
                is_line_start = false;
            }
            TokenKind::RightSquareBracket | TokenKind::RightCurlyBracket => {
                depth = depth.checked_sub(1)?;
                is_line_start = false;
            }
            _ => is_line_start = false,
        }
    }
    Some(pieces)
}

/// Whether a text begins with the heading of a table that a config may have many of.
fn is_of_many(text: &str) -> bool {
    Tables::HEADINGS.iter().any(|heading| text.starts_with(heading))
}

/// The text with blanks in the place of all pieces, so that the rest stays where it is.
fn without(text: &str, pieces: &[Range<usize>]) -> String {
    let mut rest = String::with_capacity(text.len());
    for piece in pieces {
        rest.push_str(&text[rest.len()..piece.start]);
        rest.extend(std::iter::repeat_n(' ', piece.len()));
    }
    rest.push_str(&text[rest.len()..]);
    rest
}

/// Moves what stands in a piece to where it stands in the text, `by` bytes behind. Keys stay: where they
/// stand matters for what is wrong with them alone.
fn move_values(table: &mut DeTable<'_>, by: usize) {
    for (_, value) in table.iter_mut() {
        move_value(value, by);
    }
}

fn move_value(value: &mut toml::Spanned<DeValue<'_>>, by: usize) {
    match value.get_mut() {
        DeValue::Array(array) => array.iter_mut().for_each(|value| move_value(value, by)),
        DeValue::Table(table) => move_values(table, by),
        _ => {}
    }
    let Range { start, end } = value.span();
    let inside = mem::replace(value.get_mut(), DeValue::Boolean(false));
    *value = toml::Spanned::new(start + by..end + by, inside);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{parse, parse_whole};
    use super::*;

    const CONFIGS: [&str; 3] = [
        include_str!("../../../configs/three-tier.toml"),
        include_str!("../../../configs/dual-stack.toml"),
        include_str!("../../../configs/two-vms.toml"),
    ];

    #[test]
    fn configs_as_people_write_them_are_read_in_pieces() {
        for text in CONFIGS {
            let intent = read(text).unwrap();
            assert!(!intent.rules.is_empty() && !intent.workloads.is_empty());
            assert_eq!((intent, vec![]), parse_whole(text));
            let windows = text.replace('\n', "\r\n");
            assert_eq!((read(&windows).unwrap(), vec![]), parse_whole(&windows));
        }
    }

    #[test]
    fn what_is_no_piece_is_left_to_the_whole() {
        let with = |text: &str| format!("{}\n{text}\n", CONFIGS[0]);
        let rule = "name = \"x\"\nfrom = { any = true }\nto = { any = true }\naction = \"allow\"";
        let fine = [
            format!("[[rule]]\nreason = '''\n[[rule]]\n'''\n{rule}"),
            format!("[[rule]]\nservice = [\n  \"any\",\n# [[rule]]\n]\n{rule}"),
            format!("  [[rule]]  # [[x\n{rule}\n[switch.timeouts]\nicmp = 7"),
        ];
        for text in fine.map(|text| with(&text)) {
            let intent = read(&text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!((intent, vec![]), parse_whole(&text));
        }
        let unusual = [
            format!("[[ rule ]]\n{rule}"),
            format!("[[rule]]\n{rule}\n[rule.from]\nany = true"),
            format!("[[rule]]\n{rule}\n[[rule.to]]\nany = true"),
            format!("[[rule]]\n{rule}\n[switch]\nmode = \"audit\""),
            "[[rule]]\nname = [".to_owned(),
            "[[rule]]]".to_owned(),
            "]".to_owned(),
            "[other]".to_owned(),
        ];
        for text in unusual.map(|text| with(&text)) {
            assert_eq!(read(&text), None, "{text}");
            assert_eq!(parse(&text), parse_whole(&text));
        }
    }

    proptest! {
        #[test]
        fn what_is_read_in_pieces_is_what_the_whole_says(
            config in prop::sample::select(CONFIGS.to_vec()),
            changes in prop::collection::vec((any::<prop::sample::Index>(), 0..6usize), 0..4),
        ) {
            let mut lines: Vec<&str> = config.lines().collect();
            for (at, change) in changes {
                let at = at.index(lines.len());
                match change {
                    0 => drop(lines.remove(at)),
                    1 => lines.insert(at, lines[at]),
                    2 => lines.insert(at, "[switch.timeouts]"),
                    3 => lines.insert(at, "[[rule]]"),
                    4 => lines.insert(at, "'''"),
                    _ => lines.insert(at, "]"),
                }
            }
            let text = lines.join("\n");
            if let Some(intent) = read(&text) {
                prop_assert_eq!((intent, vec![]), parse_whole(&text));
            }
            prop_assert_eq!(parse(&text), parse_whole(&text));
        }
    }
}
