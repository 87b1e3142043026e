//! What was applied: a config, and the ports added and removed by hand since.
//!
//! Control keeps it in the run directory, so that a restarted control goes on with what is in
//! force. The config file may have been edited since; that is a plan, not yet an order.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use firedoor_classifier::Snapshot;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use crate::compile::{Compiled, compile_source};
use crate::diagnostic::{Diagnostics, Source};
use crate::edit::{EditError, add_workload, remove_workload};

/// A config, and what was changed by hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Where the config was read from, for errors.
    path: String,
    /// The config.
    text: String,
    /// Workloads added by hand.
    added: Vec<Added>,
    /// Names of the config's workloads that were taken out by hand.
    removed: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Added {
    name: String,
    /// A `[[workload]]` table.
    text: String,
}

/// Why something cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum AppliedError {
    /// The config does not compile.
    #[error(transparent)]
    Compile(#[from] Diagnostics),
    /// It cannot be added or taken out.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// What was to be added has no name.
    #[error("a [[workload]] table needs a name")]
    Nameless,
    /// It is there already.
    #[error("there is a workload {name:?} already: `firedoor port del {name}` takes it out")]
    Exists {
        /// Its name.
        name: String,
    },
}

impl Applied {
    /// A config as it is.
    pub fn of(path: String, text: String) -> Self {
        Self { path, text, added: Vec::new(), removed: BTreeSet::new() }
    }

    /// What was saved at `path`, `None` if nothing was.
    ///
    /// # Errors
    /// If the file cannot be read, or is not what [`save`](Self::save) writes.
    pub fn load(path: &Path) -> io::Result<Option<Self>> {
        match fs::read(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        }
    }

    /// Saves it at `path`, whole or not at all. What was there stays beside it until one is
    /// [settled](Self::settle) or [taken back](Self::take_back), so that the latter takes no room on a disk.
    ///
    /// # Errors
    /// If the file cannot be written. It is as before.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        Self::settle(path);
        match fs::hard_link(path, beside(path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let draft = path.with_extension("json.new");
        let written = File::create(&draft).and_then(|mut file| {
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            fs::rename(&draft, path)
        });
        written.inspect_err(|_| {
            // What there is of it takes room that somebody lacks. The first error is the one to tell.
            let _ = fs::remove_file(&draft);
            Self::settle(path);
        })
    }

    /// What was [saved](Self::save) last stays.
    pub fn settle(path: &Path) {
        // If nothing was there before, nothing lies beside it; if it cannot be removed, the next one replaces it.
        let _ = fs::remove_file(beside(path));
    }

    /// What was there before the last [`save`](Self::save) is there again, or nothing.
    ///
    /// # Errors
    /// The file system's.
    pub fn take_back(path: &Path) -> io::Result<()> {
        fs::rename(beside(path), path).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => fs::remove_file(path),
            _ => Err(error),
        })
    }

    /// Compiles it. Workloads of `previous` keep their port numbers.
    ///
    /// # Errors
    /// If it does not compile.
    pub fn compile(
        &self,
        previous: Option<&Snapshot>,
        today: Date,
    ) -> Result<Compiled, AppliedError> {
        Ok(compile_source(self.edited()?, previous, today)?)
    }

    /// The config's text with everything that was changed by hand. What is left of it stays on its line.
    fn edited(&self) -> Result<Source, EditError> {
        let mut text = self.text.clone();
        for name in &self.removed {
            text = remove_workload(&text, name)?;
        }
        let mut added = Vec::new();
        for Added { name, text: table } in &self.added {
            added.push((text.trim_end().len(), name.clone()));
            text = add_workload(&text, table)?;
        }
        Ok(Source::with_added(&self.path, &text, added))
    }

    /// Another config in place of this one, with remarks. What was added by hand stays, except
    /// where the config has a workload of that name; what was taken out is in again if the config
    /// has it.
    pub fn with_config(&self, path: String, text: String) -> (Self, Vec<String>) {
        if self.added.is_empty() && self.removed.is_empty() {
            return (Self::of(path, text), Vec::new());
        }
        let names = workload_names(&text);
        let (replaced, added): (Vec<_>, Vec<_>) =
            self.added.iter().cloned().partition(|added| names.contains(&added.name));
        let mut remarks = Vec::new();
        for Added { name, .. } in &replaced {
            remarks.push(format!("{name}: now taken from {path}, not as it was added by hand"));
        }
        for name in self.removed.intersection(&names) {
            if !replaced.iter().any(|added| added.name == *name) {
                remarks.push(format!("{name}: in the switch again, since {path} has it"));
            }
        }
        (Self { path, text, added, removed: BTreeSet::new() }, remarks)
    }

    /// With a workload more: the text of one `[[workload]]` table.
    ///
    /// # Errors
    /// If it is something else, or its name is taken. Other faults are found by
    /// [`compile`](Self::compile).
    pub fn with_workload(&self, text: &str) -> Result<Self, AppliedError> {
        let text = add_workload("", text)?;
        let name = workload_names(&text).pop_first().ok_or(AppliedError::Nameless)?;
        if workload_names(self.edited()?.text()).contains(&name) {
            return Err(AppliedError::Exists { name });
        }
        let mut changed = self.clone();
        changed.added.push(Added { name, text });
        Ok(changed)
    }

    /// With a workload less.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn without_workload(&self, name: &str) -> Result<Self, AppliedError> {
        remove_workload(self.edited()?.text(), name)?;
        let mut changed = self.clone();
        changed.added.retain(|a| a.name != name);
        if changed.added.len() == self.added.len() {
            changed.removed.insert(name.to_owned());
        }
        Ok(changed)
    }
}

/// Where what [`Applied::save`] replaces is kept.
fn beside(path: &Path) -> PathBuf {
    path.with_extension("json.before")
}

/// Names of a config's `[[workload]]` tables; none if it is not TOML.
fn workload_names(text: &str) -> BTreeSet<String> {
    let config: toml::Table = text.parse().unwrap_or_default();
    let tables = config.get("workload").and_then(toml::Value::as_array);
    let names = tables.into_iter().flatten().filter_map(|w| w.get("name")?.as_str());
    names.map(ToOwned::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "[[workload]]\nname = \"web\"\n[[workload]]\nname = \"db\"\n";

    fn config() -> Applied {
        Applied::of("a.toml".into(), CONFIG.into())
    }

    fn names(applied: &Applied) -> Vec<String> {
        workload_names(applied.edited().unwrap().text()).into_iter().collect()
    }

    #[test]
    fn workloads_are_added_and_taken_out() {
        let with = config().with_workload("name = \"cache\"").unwrap();
        assert_eq!(names(&with), ["cache", "db", "web"]);
        let without = with.without_workload("web").unwrap();
        assert_eq!(names(&without), ["cache", "db"]);
        assert_eq!(
            without.without_workload("cache").unwrap(),
            config().without_workload("web").unwrap()
        );
        // What was taken out may be added in another shape.
        let replaced = without.with_workload("name = \"web\"").unwrap();
        assert_eq!(names(&replaced), ["cache", "db", "web"]);
        assert_eq!(names(&replaced.without_workload("web").unwrap()), ["cache", "db"]);

        assert!(matches!(with.with_workload("name = \"db\""), Err(AppliedError::Exists { .. })));
        assert!(matches!(with.with_workload("name = \"cache\""), Err(AppliedError::Exists { .. })));
        assert!(matches!(with.with_workload("kind = \"vm\""), Err(AppliedError::Nameless)));
        assert!(matches!(without.without_workload("web"), Err(AppliedError::Edit(_))));
    }

    #[test]
    fn errors_name_lines_of_the_file_and_commands() {
        let errors = |applied: &Applied| -> Vec<String> {
            let errors = applied.compile(None, jiff::civil::date(2026, 6, 1)).unwrap_err();
            errors.to_string().lines().map(str::to_owned).collect()
        };
        let text = format!("[switch]\nname = \"s\"\n{CONFIG}kind = \"wm\"\n[[rule]]\nname = 7\n");
        let config = Applied::of("a.toml".into(), text.clone());
        let [web, db, rule] = &errors(&config)[..3] else { panic!("three at least") };
        assert!(web.starts_with("a.toml:3:1: [[workload]] has no kind"), "{web}");
        assert!(db.starts_with("a.toml:7:8: unknown kind"), "{db}");
        assert!(rule.starts_with("a.toml:8:1: "), "{rule}");

        let changed = config.without_workload("web").unwrap();
        let changed = changed.with_workload("name = \"cache\"\nkind = \"vm\"\nip = \"1\"").unwrap();
        let changed = errors(&changed);
        assert_eq!(&changed[..2], [db.as_str(), rule]);
        assert!(changed.last().unwrap().starts_with("port add cache: \"1\" is not"), "{changed:?}");
    }

    #[test]
    fn errors_of_a_port_that_was_added_speak_of_its_arguments() {
        let added = "name = \"cache\"\nkind = \"external\"\nip = \"10.0.0.300/24\"";
        let changed = config().with_workload(added).unwrap();
        let errors = changed.compile(None, jiff::civil::date(2026, 6, 1)).unwrap_err().to_string();
        for help in [
            "has no ifname: give the interface, as --ifname eth1",
            "has no mac: give its address, as --mac 02:00:00:00:00:10, or --router",
            "write it as 10.10.0.10/24 or fd00:10::10/64",
        ] {
            let is_it = |line: &str| line.starts_with("port add cache: ") && line.ends_with(help);
            assert!(errors.lines().any(is_it), "{help}: {errors}");
        }
    }

    #[test]
    fn another_config_says_who_is_in_it() {
        let by_hand = config().with_workload("name = \"cache\"").unwrap();
        let by_hand = by_hand.with_workload("name = \"log\"").unwrap();
        let by_hand = by_hand.without_workload("web").unwrap();
        let text = format!("{CONFIG}[[workload]]\nname = \"log\"\n");
        let (applied, remarks) = by_hand.with_config("b.toml".into(), text);
        assert_eq!(names(&applied), ["cache", "db", "log", "web"]);
        assert_eq!(remarks.len(), 2, "{remarks:?}");
        assert!(remarks[0].starts_with("log: now taken from b.toml"), "{remarks:?}");
        assert!(remarks[1].starts_with("web: in the switch again"), "{remarks:?}");
        assert!(applied.removed.is_empty());
    }

    #[test]
    fn it_is_read_back_as_it_was_saved() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("applied.json");
        assert_eq!(Applied::load(&path).unwrap(), None);
        let by_hand = config().with_workload("name = \"cache\"").unwrap();
        for applied in [config(), by_hand.without_workload("db").unwrap()] {
            applied.save(&path).unwrap();
            assert_eq!(Applied::load(&path).unwrap(), Some(applied));
        }
        Applied::take_back(&path).unwrap();
        assert_eq!(Applied::load(&path).unwrap(), Some(config()), "what the second one replaced");
        by_hand.save(&path).unwrap();
        Applied::settle(&path);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        fs::write(&path, "{").unwrap();
        Applied::load(&path).unwrap_err();
    }
}
