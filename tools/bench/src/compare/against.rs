//! Whether a comparison agrees with an earlier one.
//!
//! Values move from run to run with the machine; ratios of what was measured side by side are meant to
//! stay. They agree if their ranges over the rounds have something in common. Of two sets of three
//! values of the same thing, one in ten does not. What was measured in one round only has no range, and is not
//! compared.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::goals::Goal;
use super::metric::Metric;
use super::report::Report;
use super::stats::Summary;

/// An earlier report could not be read.
#[derive(Debug, thiserror::Error)]
pub enum EarlierError {
    /// The file.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What it holds.
    #[error("{} is no report of this version of `firedoor bench compare`: {source}", path.display())]
    Format {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// What an earlier comparison found: what this module needs of its report.
#[derive(Clone, Debug, Deserialize)]
pub struct Earlier {
    rows: Vec<EarlierRow>,
    goals: Vec<EarlierGoal>,
}

#[derive(Clone, Debug, Deserialize)]
struct EarlierGoal {
    what: String,
    seen: Option<Summary>,
}

#[derive(Clone, Debug, Deserialize)]
struct EarlierRow {
    id: String,
    cells: Vec<EarlierCell>,
}

#[derive(Clone, Debug, Deserialize)]
struct EarlierCell {
    system: String,
    ratios: Ratios,
}

/// By Firedoor's lane and metric.
type Ratios = BTreeMap<String, BTreeMap<Metric, Summary>>;

impl Earlier {
    /// Reads `report.json` in a directory.
    ///
    /// # Errors
    /// If it is not there, or no report.
    pub fn read(directory: &Path) -> Result<Self, EarlierError> {
        let path = directory.join("report.json");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(source) => return Err(EarlierError::Read { path, source }),
        };
        serde_json::from_str(&text).map_err(|source| EarlierError::Format { path, source })
    }

    fn ratios(&self, row: &str, system: &str) -> Option<&Ratios> {
        let row = self.rows.iter().find(|earlier| earlier.id == row)?;
        Some(&row.cells.iter().find(|cell| cell.system == system)?.ratios)
    }
}

/// How a comparison's ratios stand to an earlier one's.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Agreement {
    /// Ratios that both have of several rounds.
    pub common: usize,
    /// Those of them that do not agree.
    pub disagree: Vec<Disagreement>,
    /// What both saw of the goals.
    pub goals: Vec<GoalAgreement>,
}

/// A goal that was measured then and now.
#[derive(Clone, Debug, Serialize)]
pub struct GoalAgreement {
    /// The goal, as it was seen now.
    pub goal: Goal,
    /// What was seen then.
    pub before: Summary,
    /// What was seen now.
    pub now: Summary,
}

impl GoalAgreement {
    /// Whether both have values in common.
    pub fn agrees(&self) -> bool {
        self.now.agrees_with(&self.before)
    }

    /// What was seen then and what was seen now, each with its spread.
    pub fn show(&self) -> [String; 2] {
        [&self.before, &self.now].map(|seen| self.goal.show_range(seen))
    }
}

/// A ratio that was another before.
#[derive(Clone, Debug, Serialize)]
pub struct Disagreement {
    /// The scenario.
    pub row: String,
    /// Firedoor's lane.
    pub ours: String,
    /// Whom it is compared with.
    pub theirs: String,
    /// In what.
    pub metric: Metric,
    /// Then.
    pub before: Summary,
    /// Now.
    pub now: Summary,
}

impl Agreement {
    /// Compares what was found with what was found earlier.
    pub fn between(report: &Report, earlier: &Earlier) -> Self {
        let mut agreement = Self { goals: goals(&report.goals, earlier), ..Self::default() };
        for row in &report.rows {
            for cell in &row.cells {
                let Some(before) = earlier.ratios(&row.id, &cell.system) else { continue };
                for (ours, metrics) in &cell.ratios {
                    for (&metric, now) in metrics {
                        let before = before.get(ours).and_then(|metrics| metrics.get(&metric));
                        let both = before.filter(|before| before.has_spread() && now.has_spread());
                        let Some(before) = both else { continue };
                        agreement.common += 1;
                        if !now.agrees_with(before) {
                            agreement.disagree.push(Disagreement {
                                row: row.id.clone(),
                                ours: ours.clone(),
                                theirs: cell.system.clone(),
                                metric,
                                before: before.clone(),
                                now: now.clone(),
                            });
                        }
                    }
                }
            }
        }
        agreement
    }
}

fn goals(goals: &[Goal], earlier: &Earlier) -> Vec<GoalAgreement> {
    let both = goals.iter().filter_map(|goal| {
        let before = earlier.goals.iter().find(|before| before.what == goal.what)?.seen.clone()?;
        let now = goal.seen.clone()?;
        let comparable = before.has_spread() && now.has_spread();
        comparable.then(|| GoalAgreement { goal: goal.clone(), before, now })
    });
    both.collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::compare::report::tests::example;

    /// What a report is read back as.
    pub(in crate::compare) fn earlier_of(report: &Report) -> Earlier {
        let directory = tempfile::tempdir().unwrap();
        let json = serde_json::to_string(report).unwrap();
        fs::write(directory.path().join("report.json"), json).unwrap();
        Earlier::read(directory.path()).unwrap()
    }

    #[test]
    fn a_comparison_agrees_with_itself_and_not_with_what_was_twice_as_much() {
        let mut report = example();
        let earlier = earlier_of(&report);
        let same = Agreement::between(&report, &earlier);
        assert!(same.common > 50, "{}", same.common);
        assert!(same.disagree.is_empty());
        assert!(same.goals.len() > 5 && same.goals.iter().all(GoalAgreement::agrees));

        let ratios = &mut report.rows[0].cells[0].ratios;
        let ratio = ratios.values_mut().next().and_then(|m| m.values_mut().next()).unwrap();
        ratio.min = ratio.max * 2.0;
        ratio.max = ratio.min;
        let other = Agreement::between(&report, &earlier);
        assert_eq!((other.common, other.disagree.len()), (same.common, 1));
        assert_eq!(other.disagree[0].row, report.rows[0].id);
    }

    #[test]
    fn what_is_no_report_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(Earlier::read(directory.path()), Err(EarlierError::Read { .. })));
        fs::write(directory.path().join("report.json"), "{}").unwrap();
        assert!(matches!(Earlier::read(directory.path()), Err(EarlierError::Format { .. })));
    }
}
