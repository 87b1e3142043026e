//! Plots as SVG text, in the colours of the page's style sheet.

use std::fmt::Write;

use super::escape;
use crate::compare::{Bar as Bucket, Summary};

/// A median, and how far the values spread.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
}

impl Point {
    pub(super) fn of(summary: &Summary) -> Self {
        Self { median: summary.median, least: summary.min, most: summary.max }
    }

    fn is_finite(&self) -> bool {
        self.median.is_finite() && self.least.is_finite() && self.most.is_finite()
    }
}

/// One bar.
#[derive(Clone, Debug)]
pub(super) struct Bar {
    pub(super) label: String,
    /// Number of its colour.
    pub(super) colour: usize,
    pub(super) value: Point,
    /// What is written behind it.
    pub(super) text: String,
}

/// One line, with a point for each label of the axis.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) colour: usize,
    pub(super) points: Vec<Option<Point>>,
}

/// Width and height of plots with axes, and what their labels take of it.
const SIZE: (f64, f64) = (460.0, 240.0);
const MARGIN: (f64, f64) = (70.0, 36.0);
/// Room above the highest value, and beside the last label's middle.
const TOP: f64 = 8.0;
const RIGHT: f64 = 24.0;

/// Bars from left to right, with whiskers from the least value to the largest.
pub(super) fn bars(bars: &[Bar]) -> String {
    const ROW: f64 = 24.0;
    const LABEL: f64 = 170.0;
    const LENGTH: f64 = 260.0;
    const TEXT: f64 = 90.0;
    let values = bars.iter().filter(|bar| bar.value.is_finite()).map(|bar| bar.value.most);
    let longest = values.fold(0.0, f64::max);
    let scale = |value: f64| if longest > 0.0 { value.max(0.0) / longest * LENGTH } else { 0.0 };
    let mut svg = open(LABEL + LENGTH + TEXT, ROW * bars.len() as f64);
    for (row, bar) in bars.iter().enumerate() {
        let y = ROW * row as f64;
        let middle = y + ROW / 2.0;
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LABEL - 8.0,
            middle + 4.0,
            escape(&bar.label),
        );
        let mut end = 0.0;
        if bar.value.is_finite() {
            let Point { median, least, most } = bar.value;
            end = scale(most);
            let _ = writeln!(
                svg,
                "<rect class=\"bar c{}\" x=\"{LABEL}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>",
                bar.colour,
                y + 4.0,
                scale(median),
                ROW - 8.0,
            );
            let (from, to) = (LABEL + scale(least), LABEL + end);
            let _ = writeln!(
                svg,
                "<path class=\"whisker\" d=\"M{from:.1} {middle:.1}H{to:.1}M{from:.1} {0:.1}V{1:.1}M{to:.1} {0:.1}V{1:.1}\"/>",
                middle - 4.0,
                middle + 4.0,
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            LABEL + end + 8.0,
            middle + 4.0,
            escape(&bar.text),
        );
    }
    svg + "</svg>\n"
}

/// Lines over evenly spaced labels, from zero on, with whiskers.
pub(super) fn lines(
    lines: &[Line],
    labels: &[String],
    axis: &str,
    show: &dyn Fn(f64) -> String,
) -> String {
    let points = || lines.iter().flat_map(|line| line.points.iter().flatten());
    let highest = points().filter(|p| p.is_finite()).map(|p| p.most).fold(0.0, f64::max);
    let mut svg = frame(highest, axis, show);
    let step = (SIZE.0 - MARGIN.0 - RIGHT) / labels.len().max(1) as f64;
    let x = |position: usize| MARGIN.0 + step * (position as f64 + 0.5);
    for (position, label) in labels.iter().enumerate() {
        tick_below(&mut svg, x(position), label);
    }
    for line in lines {
        let mut path = String::new();
        for (position, point) in line.points.iter().enumerate() {
            let Some(point) = point.filter(Point::is_finite) else { continue };
            let (x, y) = (x(position), height_of(point.median, highest));
            let _ = write!(path, "{}{x:.1} {y:.1}", if path.is_empty() { 'M' } else { 'L' });
            let _ = writeln!(
                svg,
                "<circle class=\"c{0}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>\
                 <path class=\"c{0}\" d=\"M{x:.1} {1:.1}V{2:.1}\"/>",
                line.colour,
                height_of(point.least, highest),
                height_of(point.most, highest),
            );
        }
        if !path.is_empty() {
            let _ = writeln!(svg, "<path class=\"line c{}\" d=\"{path}\"/>", line.colour);
        }
    }
    svg + "</svg>\n"
}

/// Points of a decade that a histogram's curve has.
const PER_DECADE: f64 = 24.0;

/// Histograms over a logarithmic axis of nanoseconds, each as a share of its own total.
pub(super) fn histograms(curves: &[(usize, &[Bucket])], show: &dyn Fn(f64) -> String) -> String {
    let all = || curves.iter().flat_map(|(_, buckets)| buckets.iter());
    let ends = |ns: u64| (ns.max(1) as f64).log10();
    let first = all().map(|bucket| ends(bucket.from_ns)).fold(f64::INFINITY, f64::min).floor();
    let last = all().map(|bucket| ends(bucket.to_ns)).fold(first + 1.0, f64::max).ceil();
    let shares: Vec<(usize, Vec<f64>)> =
        curves.iter().map(|&(colour, buckets)| (colour, shares(buckets, first, last))).collect();
    let highest = shares.iter().flat_map(|(_, shares)| shares).copied().fold(0.0, f64::max);
    let mut svg = frame(highest, "round trip", &|share| format!("{:.0} %", share * 100.0));
    let x =
        |decade: f64| MARGIN.0 + (decade - first) / (last - first) * (SIZE.0 - MARGIN.0 - RIGHT);
    for decade in 0..=(last - first) as u32 {
        let decade = first + f64::from(decade);
        tick_below(&mut svg, x(decade), &show(10_f64.powf(decade)));
    }
    for (colour, shares) in shares {
        let mut path = String::new();
        for (slot, share) in shares.iter().enumerate() {
            let at = x(first + (slot as f64 + 0.5) / PER_DECADE);
            let start = if path.is_empty() { 'M' } else { 'L' };
            let _ = write!(path, "{start}{at:.1} {:.1}", height_of(*share, highest));
        }
        let _ = writeln!(svg, "<path class=\"line c{colour}\" d=\"{path}\"/>");
    }
    svg + "</svg>\n"
}

/// The share of all times that lies in each slot of a logarithmic axis.
fn shares(buckets: &[Bucket], first: f64, last: f64) -> Vec<f64> {
    let mut shares = vec![0.0; ((last - first) * PER_DECADE).ceil() as usize];
    let total: u64 = buckets.iter().map(|bucket| bucket.count).sum();
    for bucket in buckets {
        let middle = (bucket.from_ns + bucket.to_ns) as f64 / 2.0;
        let slot = (middle.max(1.0).log10() - first) * PER_DECADE;
        if let Some(share) = shares.get_mut(slot.max(0.0) as usize) {
            *share += bucket.count as f64 / total.max(1) as f64;
        }
    }
    shares
}

/// An empty plot with an axis of values from zero to `highest`.
fn frame(highest: f64, axis: &str, show: &dyn Fn(f64) -> String) -> String {
    const LINES: u32 = 4;
    let mut svg = open(SIZE.0, SIZE.1);
    for line in 0..=LINES {
        let value = highest * f64::from(line) / f64::from(LINES);
        let y = height_of(value, highest);
        let _ = writeln!(
            svg,
            "<path class=\"grid\" d=\"M{:.1} {y:.1}H{:.1}\"/>\
             <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            MARGIN.0,
            SIZE.0 - RIGHT,
            MARGIN.0 - 6.0,
            y + 4.0,
            show(value),
        );
    }
    let _ = writeln!(
        svg,
        "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
        (MARGIN.0 + SIZE.0 - RIGHT) / 2.0,
        SIZE.1 - 4.0,
        escape(axis),
    );
    svg
}

fn tick_below(svg: &mut String, x: f64, label: &str) {
    let _ = writeln!(
        svg,
        "<text class=\"tick\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
        SIZE.1 - MARGIN.1 + 16.0,
        escape(label),
    );
}

/// Where a value is in a plot whose highest one is known.
fn height_of(value: f64, highest: f64) -> f64 {
    let share = if highest > 0.0 { value / highest } else { 0.0 };
    SIZE.1 - MARGIN.1 - share * (SIZE.1 - MARGIN.1 - TOP)
}

fn open(width: f64, height: f64) -> String {
    format!(
        "<svg width=\"{width:.0}\" height=\"{height:.0}\" viewBox=\"0 0 {width:.0} {height:.0}\">\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(median: f64) -> Point {
        Point { median, least: median * 0.9, most: median * 1.1 }
    }

    #[test]
    fn the_longest_bar_fills_its_room_and_infinite_ones_have_none() {
        let bar = |label: &str, value| Bar {
            label: label.to_owned(),
            colour: 1,
            value: point(value),
            text: String::new(),
        };
        let svg = bars(&[bar("a", 10.0), bar("<b>", 5.0), bar("c", f64::INFINITY)]);
        assert!(svg.contains("width=\"236.4\"") && svg.contains("width=\"118.2\""), "{svg}");
        assert_eq!(svg.matches("<rect").count(), 2);
        assert!(svg.contains("&lt;b&gt;"));
    }

    #[test]
    fn lines_leave_out_what_was_not_measured() {
        let line = Line { colour: 0, points: vec![Some(point(1.0)), None, Some(point(2.0))] };
        let labels = ["0", "1000", "10000"].map(str::to_owned);
        let svg = lines(&[line], &labels, "rules", &|value| format!("{value:.1}"));
        assert_eq!(svg.matches("<circle").count(), 2);
        assert_eq!(svg.matches('L').count(), 1);
        assert!(lines(&[], &[], "rules", &|_| String::new()).ends_with("</svg>\n"));
    }

    #[test]
    fn shares_add_up() {
        let bucket = |from_ns, count| Bucket { from_ns, to_ns: from_ns + 10, count };
        let shares = shares(&[bucket(1_000, 3), bucket(5_000, 1), bucket(90_000, 4)], 3.0, 5.0);
        assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        assert_eq!(shares.len(), 48);
    }
}
