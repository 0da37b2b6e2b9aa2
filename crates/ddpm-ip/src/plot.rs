//! Small pictures of curves, as SVG.

use std::fmt::Write;

/// Colours that people with any eyesight tell apart (Okabe & Ito 2008).
pub(crate) const COLOURS: [&str; 7] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "currentColor"];

/// A panel's size, and the margins within it: left, top, right, bottom.
pub(crate) const PANEL: [f64; 2] = [360.0, 220.0];
const MARGINS: [f64; 4] = [56.0, 30.0, 12.0, 28.0];

/// What the values of a panel span.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Axis {
    /// Zero is always in sight.
    Zero,
    /// Logarithmic; what is not above zero is left out.
    Log,
}

/// A line of a panel.
pub(crate) struct Line {
    pub(crate) colour: &'static str,
    /// Lengths of its dashes; empty for a whole line.
    pub(crate) dash: &'static str,
    /// x, value and error.
    pub(crate) points: Vec<[f64; 3]>,
}

/// Lines over one axis.
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) axis: Axis,
    pub(crate) lines: Vec<Line>,
}

/// Panels under each other in `columns`, below a head of that height, into which `head` writes.
pub(crate) fn picture(panels: &[Panel], columns: usize, head: f64, write_head: impl FnOnce(&mut String)) -> String {
    let (width, height) = (PANEL[0] * columns as f64, head + PANEL[1] * panels.len().div_ceil(columns) as f64);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    write_head(&mut svg);
    for (i, panel) in panels.iter().enumerate() {
        panel.draw(&mut svg, [(i % columns) as f64 * PANEL[0], head + (i / columns) as f64 * PANEL[1]], PANEL);
    }
    svg.push_str("</svg>\n");
    svg
}

impl Panel {
    /// The panel as a picture of its own, in the colours of the page around it.
    pub(crate) fn figure(&self, size: [f64; 2]) -> String {
        let ([width, height], title) = (size, escaped(&self.title));
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
             font-size=\"12\" fill=\"currentColor\" role=\"img\" aria-label=\"{title}\">\n"
        );
        self.draw(&mut svg, [0.0, 0.0], size);
        svg.push_str("</svg>\n");
        svg
    }

    fn draw(&self, svg: &mut String, [left, top]: [f64; 2], size: [f64; 2]) {
        let is_log = self.axis == Axis::Log;
        let seen = |p: &&[f64; 3]| !is_log || p[1] > 0.0;
        let points = || self.lines.iter().flat_map(|line| &line.points).filter(seen);
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" font-weight=\"bold\">{}</text>",
            left + MARGINS[0],
            top + 18.0,
            escaped(&self.title)
        );
        let range = |of: &dyn Fn(&[f64; 3]) -> [f64; 2]| {
            points().map(of).fold([f64::INFINITY, f64::NEG_INFINITY], |[a, b], [low, high]| [a.min(low), b.max(high)])
        };
        let error = |p: &[f64; 3]| if p[2].is_finite() { p[2] } else { 0.0 };
        let [t0, t1] = range(&|p| [p[0], p[0]]);
        let [low, high] = match self.axis {
            Axis::Zero => range(&|p| [(p[1] - error(p)).min(0.0), (p[1] + error(p)).max(0.0)]),
            Axis::Log => range(&|p| [p[1].ln(), p[1].ln()]),
        };
        if !(t1 > t0 && high > low) {
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{}\" fill-opacity=\"0.7\">not measurable here</text>",
                left + MARGINS[0],
                top + 60.0
            );
            return;
        }
        let inner = [size[0] - MARGINS[0] - MARGINS[2], size[1] - MARGINS[1] - MARGINS[3]];
        let x = |t: f64| left + MARGINS[0] + (t - t0) / (t1 - t0) * inner[0];
        let y = |v: f64| top + MARGINS[1] + (high - if is_log { v.ln() } else { v }) / (high - low) * inner[1];
        for tick in if is_log { log_ticks(low, high) } else { ticks(low, high) } {
            let _ = writeln!(
                svg,
                "<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{2:.1}\" y2=\"{2:.1}\" stroke=\"currentColor\" \
                 stroke-opacity=\"{3}\"/><text x=\"{4:.1}\" y=\"{5:.1}\" \
                 text-anchor=\"end\">{6}</text>",
                x(t0),
                x(t1),
                y(tick),
                if tick == 0.0 { 0.5 } else { 0.12 },
                x(t0) - 5.0,
                y(tick) + 4.0,
                short(tick)
            );
        }
        for tick in ticks(t0, t1) {
            // A number at the edge would be cut off.
            let anchor = if x(tick) > left + size[0] - 2.0 * MARGINS[2] { "end" } else { "middle" };
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
                x(tick),
                top + size[1] - 10.0,
                short(tick)
            );
        }
        for line in &self.lines {
            let place = |p: &[f64; 3], shift: f64| format!("{:.1},{:.1}", x(p[0]), y(p[1] + shift * error(p)));
            let shown = || line.points.iter().filter(seen);
            let (above, below) = (shown().map(|p| place(p, 1.0)), shown().rev().map(|p| place(p, -1.0)));
            if !is_log && shown().any(|p| error(p) > 0.0) {
                let band: Vec<String> = above.chain(below).collect();
                let _ =
                    writeln!(svg, "<polygon points=\"{}\" fill=\"{}\" opacity=\"0.18\"/>", band.join(" "), line.colour);
            }
            let path: Vec<String> = shown().map(|p| place(p, 0.0)).collect();
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.6\" stroke-dasharray=\"{}\"/>",
                path.join(" "),
                line.colour,
                if line.dash.is_empty() { "none" } else { line.dash }
            );
        }
    }
}

/// Round numbers within a range, three to six of them.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let raw = (high - low) / 4.0;
    let power = 10_f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|m| m * power).find(|&s| s >= raw).unwrap_or(raw);
    let (first, last) = ((low / step).ceil() as i64, (high / step + 1e-9).floor() as i64);
    (first..=last).map(|k| k as f64 * step).collect()
}

/// Round numbers between the exponentials of two logarithms: 1, 2 and 5 times powers of ten; evenly spaced ones where that
/// gives too few.
fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    let powers = (low / 10f64.ln()).floor() as i32..=(high / 10f64.ln()).ceil() as i32;
    let within = |v: &f64| (low..=high).contains(&v.ln());
    let of = |factors: &[f64]| -> Vec<f64> {
        powers.clone().flat_map(|p| factors.iter().map(move |f| f * 10f64.powi(p))).filter(within).collect()
    };
    let (few, many) = (of(&[1.0]), of(&[1.0, 2.0, 5.0]));
    match (few.len(), many.len()) {
        (4.., _) => few,
        (_, 3..) => many,
        _ => ticks(low.exp(), high.exp()),
    }
}

/// A number in few digits.
fn short(v: f64) -> String {
    for (unit, of) in [("M", 1e6), ("k", 1e3)] {
        if v.abs() >= 10.0 * of || (v.abs() >= of && unit == "M") {
            let text = format!("{:.2}", v / of);
            return format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'));
        }
    }
    let text = if v == 0.0 || (1e-4..1e5).contains(&v.abs()) { format!("{v:.4}") } else { return format!("{v:.1e}") };
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        assert_eq!(ticks(0.0, 999.0), [0.0, 250.0, 500.0, 750.0]);
        assert_eq!(ticks(-0.013, 0.04).first(), Some(&0.0));
        assert_eq!([0.0, 250.0, 0.025, -1.5, 1e-5, 2e6].map(short), ["0", "250", "0.025", "-1.5", "1.0e-5", "2M"]);
    }

    #[test]
    fn ticks_of_logarithms_are_round_too() {
        let of = |low: f64, high: f64| log_ticks(low.ln(), high.ln());
        assert_eq!(of(0.09, 1.1), [0.1, 0.2, 0.5, 1.0]);
        assert_eq!(of(1e-3, 200.0).len(), 6);
        assert_eq!(of(0.31, 0.42), ticks(0.31, 0.42));
        assert_eq!([1500.0, 25_000.0, 500_000.0, 1e6].map(short), ["1500", "25k", "500k", "1M"]);
    }

    #[test]
    fn what_is_not_above_zero_has_no_logarithm() {
        let points = vec![[1.0, 0.5, 0.0], [2.0, 0.0, 0.0], [3.0, 0.1, 0.0]];
        let panel =
            Panel { title: "loss".into(), axis: Axis::Log, lines: vec![Line { colour: COLOURS[0], dash: "", points }] };
        let svg = panel.figure([300.0, 200.0]);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert_eq!(svg.matches("<polyline").count(), 1);
    }

    #[test]
    fn names_cannot_break_the_picture() {
        assert_eq!(escaped("<a> & \"b"), "&lt;a&gt; &amp; &quot;b");
    }
}
