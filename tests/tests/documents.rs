//! The documentation hangs together: every link leads to a file that is there and to a heading in it, and the list
//! of decisions names them all.
#![allow(clippy::unwrap_used, reason = "what a test cannot go on without fails it")]

use std::fs;
use std::path::{Path, PathBuf};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// Pages of a folder, in their order.
fn pages(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(repository().join(folder)).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut pages: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|kind| kind == "md")).collect();
    pages.sort();
    pages
}

/// What links lead to in a page.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let behind = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    behind.filter(|link| !link.starts_with("http"))
}

/// Names by which a page's headings can be linked to, as GitHub makes them.
fn headings(text: &str) -> impl Iterator<Item = String> {
    let titles = text.lines().filter(|line| line.starts_with('#'));
    titles.map(|line| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || "-_ ".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    })
}

#[test]
fn every_link_leads_somewhere() {
    let mut count = 0;
    for page in [pages("."), pages("docs"), pages("docs/adr")].concat() {
        let text = fs::read_to_string(&page).unwrap();
        for link in links(&text) {
            count += 1;
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => page.clone(),
                file => page.parent().unwrap().join(file),
            };
            assert!(target.exists(), "{}: nothing is at {link}", page.display());
            let known = || {
                let text = fs::read_to_string(&target).unwrap();
                headings(&text).any(|known| known == heading)
            };
            assert!(heading.is_empty() || known(), "{}: no heading {link}", page.display());
        }
    }
    assert!(count > 100, "only {count} links were found");
}

#[test]
fn the_list_of_decisions_names_each_by_its_title() {
    let list = fs::read_to_string(repository().join("docs/adr/README.md")).unwrap();
    for page in pages("docs/adr") {
        let name = page.file_name().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&page).unwrap();
        let title = text.lines().next().unwrap().trim_start_matches("# ");
        let entry = format!("[{title}]({name})");
        assert!(name == "README.md" || list.contains(&entry), "it has no {entry}");
    }
}
