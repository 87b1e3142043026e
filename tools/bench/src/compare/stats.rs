//! What repeated measurements come to: the median, and how far they spread.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Some values of one quantity, of a round each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The middle one; of an even number, the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// All of them, in the order they were measured.
    pub values: Vec<f64>,
    /// The rounds that they were measured in, from 0.
    pub rounds: Vec<usize>,
}

impl Summary {
    /// The summary of at least one value, by round.
    pub fn of(by_round: &BTreeMap<usize, f64>) -> Option<Self> {
        let values: Vec<f64> = by_round.values().copied().collect();
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            1 => sorted[middle],
            _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
        };
        Some(Self { median, min, max, values, rounds: by_round.keys().copied().collect() })
    }

    /// The value of a round, if it was measured there.
    pub fn at(&self, round: usize) -> Option<f64> {
        let position = self.rounds.iter().position(|&measured| measured == round)?;
        self.values.get(position).copied()
    }

    /// The summary of what this is over another, value by value: what was measured in the same round
    /// is compared. `None` if nothing was, or a value has no ratio to the other.
    pub fn over(&self, other: &Self) -> Option<Self> {
        let ratio = |&round: &usize| Some((round, self.at(round)? / other.at(round)?));
        let ratios: BTreeMap<usize, f64> = self.rounds.iter().filter_map(ratio).collect();
        if ratios.values().all(|ratio| ratio.is_finite()) { Self::of(&ratios) } else { None }
    }

    /// Whether it was measured more than once, so that something is known of its spread.
    pub fn has_spread(&self) -> bool {
        self.values.len() > 1
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The summary of values of the first rounds.
    pub(in crate::compare) fn summary(values: &[f64]) -> Summary {
        Summary::of(&values.iter().copied().enumerate().collect()).unwrap()
    }

    #[test]
    fn ratios_are_those_of_each_round() {
        let (ours, theirs) = (summary(&[2.0, 9.0, 4.0]), summary(&[1.0, 3.0, 8.0]));
        let ratio = ours.over(&theirs).unwrap();
        assert_eq!(ratio.values, [2.0, 3.0, 0.5]);
        assert_eq!(ratio.median, 2.0);
        let nothing = summary(&[0.0]);
        assert_eq!(nothing.over(&nothing), None);
    }

    #[test]
    fn only_what_both_have_of_a_round_is_compared() {
        let all = summary(&[2.0, 9.0, 4.0]);
        let [second, later] = [(1, 3.0), (7, 3.0)].map(|one| Summary::of(&[one].into()).unwrap());
        let ratio = all.over(&second).unwrap();
        assert_eq!((ratio.values, ratio.rounds), (vec![3.0], vec![1]));
        assert_eq!(all.over(&later), None);
    }

    #[test]
    fn the_median_is_in_the_middle_whatever_the_order() {
        let odd = summary(&[9.0, 1.0, 5.0]);
        assert_eq!((odd.median, odd.min, odd.max), (5.0, 1.0, 9.0));
        assert_eq!(odd.values, [9.0, 1.0, 5.0], "as measured");
        assert_eq!(summary(&[4.0, 1.0, 2.0, 9.0]).median, 3.0);
        assert_eq!(summary(&[7.0]).median, 7.0);
        assert_eq!(Summary::of(&BTreeMap::new()), None);
    }
}
