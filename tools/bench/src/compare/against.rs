//! Whether a comparison agrees with an earlier one.
//!
//! Values move from run to run with the machine; ratios of what was measured side by side are meant to
//! stay. Two runs [agree](Accord) about one if its values of one run's rounds and the other's have a range in common
//! *and* their medians are less than a fifth apart. The first alone would let everything pass that spreads far enough.
//!
//! By chance alone, the ranges of two sets of three values of the same thing have nothing in common in one case of ten,
//! of four in one of 35, of five in one of 126 ([`Agreement::by_chance`]). And ranges that are wide do not show
//! a difference that is small: so it is said of how many ratios a fifth more or less would have shown.
//!
//! What was measured in one round only has no range, and is not compared.

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

/// How far apart values may be that count as the same: a quantile of round trips is known to 1.6 %.
const NEARLY: f64 = 1.02;
/// How far apart medians may be, however far their values spread.
const FAR: f64 = 1.2;

/// How what was seen of one ratio in two comparisons goes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Accord {
    /// Their ranges overlap, and their medians are less than a fifth apart.
    Agree,
    /// Their ranges have nothing in common.
    Apart,
    /// Their ranges overlap, but their medians are a fifth apart or more: the values spread too far to tell.
    Unsettled,
}

impl Accord {
    fn of(one: &Summary, other: &Summary) -> Self {
        let (least, most) = (one.median.min(other.median), one.median.max(other.median));
        if one.min > other.max * NEARLY || other.min > one.max * NEARLY {
            Self::Apart
        } else if most > least * FAR {
            Self::Unsettled
        } else {
            Self::Agree
        }
    }

    /// In a word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Agree => "yes",
            Self::Apart => "no",
            Self::Unsettled => "spread too far",
        }
    }
}

/// What two comparisons saw of one ratio.
#[derive(Clone, Debug, Serialize)]
pub struct Seen {
    /// Then.
    pub before: Summary,
    /// Now.
    pub now: Summary,
    /// Whether that is the same.
    pub accord: Accord,
}

impl Seen {
    /// Of what was measured more than once both times.
    fn of(before: &Summary, now: &Summary) -> Option<Self> {
        let both = before.has_spread() && now.has_spread();
        let accord = Accord::of(before, now);
        both.then(|| Self { before: before.clone(), now: now.clone(), accord })
    }

    /// Whether ranges are so narrow that they would have nothing in common if one were a fifth more, or less.
    fn is_sharp(&self) -> bool {
        let moved = |factor: f64| {
            let Summary { median, min, max, .. } = self.now;
            let [median, min, max] = [median, min, max].map(|value| value * factor);
            Accord::of(&self.before, &Summary { median, min, max, ..self.now.clone() })
        };
        [FAR, 1.0 / FAR].iter().all(|&factor| moved(factor) == Accord::Apart)
    }

    /// How likely ranges of so many values of the same thing have nothing in common: as likely as of all orders that
    /// they can be in, one set comes first.
    fn chance(&self) -> f64 {
        let (few, many) = (self.before.values.len(), self.now.values.len());
        let orders = (1..=few).map(|n| (many + n) as f64 / n as f64).product::<f64>();
        2.0 / orders
    }
}

/// How a comparison's ratios stand to an earlier one's.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Agreement {
    /// Ratios that both have of several rounds.
    pub ratios: Vec<RatioSeen>,
    /// What both saw of the goals.
    pub goals: Vec<GoalSeen>,
}

/// A goal that was measured then and now.
#[derive(Clone, Debug, Serialize)]
pub struct GoalSeen {
    /// The goal, as it was seen now.
    pub goal: Goal,
    /// What was seen then and now.
    pub seen: Seen,
}

impl GoalSeen {
    /// What was seen then and what was seen now, each with its spread.
    pub fn show(&self) -> [String; 2] {
        [&self.seen.before, &self.seen.now].map(|seen| self.goal.show_range(seen))
    }
}

/// A ratio that was measured then and now.
#[derive(Clone, Debug, Serialize)]
pub struct RatioSeen {
    /// The scenario.
    pub row: String,
    /// Firedoor's lane.
    pub ours: String,
    /// Whom it is compared with.
    pub theirs: String,
    /// In what.
    pub metric: Metric,
    /// What was seen then and now.
    pub seen: Seen,
}

impl Agreement {
    /// Compares what was found with what was found earlier.
    pub fn between(report: &Report, earlier: &Earlier) -> Self {
        let mut agreement = Self { goals: goals(&report.goals, earlier), ..Self::default() };
        for row in &report.rows {
            for cell in &row.cells {
                let Some(before) = earlier.ratios(&row.id, &cell.system) else { continue };
                for (ours, metrics) in &cell.ratios {
                    let seen = metrics.iter().filter_map(|(&metric, now)| {
                        Some((metric, Seen::of(before.get(ours)?.get(&metric)?, now)?))
                    });
                    agreement.ratios.extend(seen.map(|(metric, seen)| RatioSeen {
                        row: row.id.clone(),
                        ours: ours.clone(),
                        theirs: cell.system.clone(),
                        metric,
                        seen,
                    }));
                }
            }
        }
        agreement
    }

    /// Those that do not agree.
    pub fn others(&self) -> impl Iterator<Item = &RatioSeen> {
        self.ratios.iter().filter(|ratio| ratio.seen.accord != Accord::Agree)
    }

    /// How many ratios are apart by chance alone, on average.
    pub fn by_chance(&self) -> f64 {
        self.ratios.iter().map(|ratio| ratio.seen.chance()).sum()
    }

    /// All of it in some sentences.
    pub fn summary(&self) -> String {
        let count = |accord| self.ratios.iter().filter(|r| r.seen.accord == accord).count();
        let [agree, apart, unsettled] =
            [Accord::Agree, Accord::Apart, Accord::Unsettled].map(count);
        let sharp = self.ratios.iter().filter(|ratio| ratio.seen.is_sharp()).count();
        format!(
            "Of {} ratios that the earlier report has, too, {agree} agree: their ranges overlap, and their medians \
             are less than a fifth apart. Ranges of {apart} have nothing in common, as those of {:.1} would by \
             chance; {unsettled} overlap only because they spread so far. Of {sharp} the ranges are so \
             narrow that a fifth more or less would have shown.",
            self.ratios.len(),
            self.by_chance(),
        )
    }
}

fn goals(goals: &[Goal], earlier: &Earlier) -> Vec<GoalSeen> {
    let both = goals.iter().filter_map(|goal| {
        let before = earlier.goals.iter().find(|before| before.what == goal.what)?;
        let seen = Seen::of(before.seen.as_ref()?, goal.seen.as_ref()?)?;
        Some(GoalSeen { goal: goal.clone(), seen })
    });
    both.collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::compare::report::tests::example;
    use crate::compare::stats::tests::summary;

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
        assert!(same.ratios.len() > 50, "{}", same.ratios.len());
        assert_eq!(same.others().count(), 0);
        assert!(same.goals.len() > 5);
        assert!(same.goals.iter().all(|goal| goal.seen.accord == Accord::Agree));

        let ratios = &mut report.rows[0].cells[0].ratios;
        let ratio = ratios.values_mut().next().and_then(|m| m.values_mut().next()).unwrap();
        ratio.min = ratio.max * 2.0;
        ratio.max = ratio.min;
        let other = Agreement::between(&report, &earlier);
        assert_eq!((other.ratios.len(), other.others().count()), (same.ratios.len(), 1));
        assert_eq!(other.others().next().unwrap().row, report.rows[0].id);
    }

    #[test]
    fn ranges_that_overlap_agree_unless_medians_are_far_apart() {
        let accord = |one: &[f64], other: &[f64]| {
            let [one, other] = [one, other].map(summary);
            let accord = Accord::of(&one, &other);
            assert_eq!(accord, Accord::of(&other, &one));
            accord
        };
        assert_eq!(accord(&[1.0, 2.0, 2.1], &[1.9, 2.2, 3.0]), Accord::Agree);
        assert_eq!(accord(&[1.0, 2.0, 2.1], &[2.2, 2.2, 2.3]), Accord::Apart);
        assert_eq!(accord(&[1.0, 1.7, 2.3], &[1.9, 2.2, 3.0]), Accord::Unsettled);
        assert_eq!(accord(&[8_640.0, 8_640.0], &[8_768.0, 8_768.0]), Accord::Agree);
    }

    #[test]
    fn a_fifth_more_shows_if_ranges_are_narrow() {
        let sharp = |one: &[f64], other: &[f64]| {
            Seen::of(&summary(one), &summary(other)).unwrap().is_sharp()
        };
        assert!(sharp(&[1.0, 1.05, 1.1], &[1.0, 1.05, 1.1]));
        assert!(!sharp(&[1.0, 1.05, 1.2], &[1.0, 1.05, 1.1]));
        assert_eq!(Seen::of(&summary(&[1.0]), &summary(&[1.0, 1.0])).map(|_| ()), None);
    }

    /// Every order of `few` values among all.
    #[test]
    fn the_chance_is_that_of_all_orders_in_which_one_set_comes_first() {
        for (few, many) in [(3, 3), (2, 4), (5, 3)] {
            let all = few + many;
            let orders = (0_u32..1 << all).filter(|order| order.count_ones() as usize == few);
            let apart = |order: &u32| {
                order.trailing_ones() as usize == few || order.trailing_zeros() as usize == many
            };
            let (count, apart) =
                (orders.clone().count() as f64, orders.filter(apart).count() as f64);
            let [before, now] = [few, many].map(|n| summary(&vec![1.0; n]));
            let chance = Seen::of(&before, &now).unwrap().chance();
            assert!((chance - apart / count).abs() < 1e-12, "{few}, {many}: {chance}");
        }
    }

    #[test]
    fn what_is_no_report_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(Earlier::read(directory.path()), Err(EarlierError::Read { .. })));
        fs::write(directory.path().join("report.json"), "{}").unwrap();
        assert!(matches!(Earlier::read(directory.path()), Err(EarlierError::Format { .. })));
    }
}
