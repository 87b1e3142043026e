//! What repeated measurements come to: the median, and how far they spread.

use serde::{Deserialize, Serialize};

/// How far apart values may be that count as the same: a quantile of round trips is known to 1.6 %.
const NEARLY: f64 = 1.02;

/// Some values of one quantity, in the order they were measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The middle one; of an even number, the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// All of them.
    pub values: Vec<f64>,
}

impl Summary {
    /// The summary of at least one value.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            1 => sorted[middle],
            _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
        };
        Some(Self { median, min, max, values: values.to_vec() })
    }

    /// The summary of what this is over another, value by value: what was measured in the same round
    /// is compared. `None` if nothing is, or a value has no ratio to the other.
    pub fn over(&self, other: &Self) -> Option<Self> {
        let pairs = self.values.iter().zip(&other.values);
        let ratios: Vec<f64> = pairs.map(|(ours, theirs)| ours / theirs).collect();
        if ratios.iter().all(|ratio| ratio.is_finite()) { Self::of(&ratios) } else { None }
    }

    /// Whether the values of both, from the least to the largest, have some in common, or nearly.
    pub fn agrees_with(&self, other: &Self) -> bool {
        self.min <= other.max * NEARLY && other.min <= self.max * NEARLY
    }

    /// Whether it was measured more than once, so that something is known of its spread.
    pub fn has_spread(&self) -> bool {
        self.values.len() > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_those_of_each_round() {
        let (ours, theirs) = (Summary::of(&[2.0, 9.0, 4.0]), Summary::of(&[1.0, 3.0, 8.0]));
        let ratio = ours.unwrap().over(&theirs.unwrap()).unwrap();
        assert_eq!(ratio.values, [2.0, 3.0, 0.5]);
        assert_eq!(ratio.median, 2.0);
        let nothing = Summary::of(&[0.0]).unwrap();
        assert_eq!(nothing.over(&nothing), None);
    }

    #[test]
    fn summaries_agree_if_they_overlap() {
        let [low, middle, high] =
            [[1.0, 2.0], [2.0, 3.0], [2.5, 4.0]].map(|v| Summary::of(&v).unwrap());
        assert!(low.agrees_with(&middle) && middle.agrees_with(&high));
        assert!(!low.agrees_with(&high) && !high.agrees_with(&low));
        let [step, next] = [8_640.0, 8_768.0].map(|value| Summary::of(&[value]).unwrap());
        assert!(step.agrees_with(&next) && next.agrees_with(&step) && !step.has_spread());
    }

    #[test]
    fn the_median_is_in_the_middle_whatever_the_order() {
        let odd = Summary::of(&[9.0, 1.0, 5.0]).unwrap();
        assert_eq!((odd.median, odd.min, odd.max), (5.0, 1.0, 9.0));
        assert_eq!(odd.values, [9.0, 1.0, 5.0], "as measured");
        assert_eq!(Summary::of(&[4.0, 1.0, 2.0, 9.0]).unwrap().median, 3.0);
        assert_eq!(Summary::of(&[7.0]).unwrap().median, 7.0);
        assert_eq!(Summary::of(&[]), None);
    }
}
