//! Small pictures of curves, as SVG.

use std::fmt::Write;

/// Colours that people with any eyesight tell apart (Okabe & Ito 2008).
pub(crate) const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];

/// A panel's size, and the margins within it: left, top, right, bottom.
pub(crate) const PANEL: [f64; 2] = [360.0, 220.0];
const MARGINS: [f64; 4] = [56.0, 30.0, 12.0, 28.0];

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
        panel.draw(&mut svg, [(i % columns) as f64 * PANEL[0], head + (i / columns) as f64 * PANEL[1]]);
    }
    svg.push_str("</svg>\n");
    svg
}

impl Panel {
    fn draw(&self, svg: &mut String, [left, top]: [f64; 2]) {
        let points = || self.lines.iter().flat_map(|line| &line.points);
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
        // Zero is always in sight.
        let [low, high] = range(&|p| [(p[1] - error(p)).min(0.0), (p[1] + error(p)).max(0.0)]);
        if !(t1 > t0 && high > low) {
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{}\" fill=\"#777\">not measurable here</text>",
                left + MARGINS[0],
                top + 60.0
            );
            return;
        }
        let inner = [PANEL[0] - MARGINS[0] - MARGINS[2], PANEL[1] - MARGINS[1] - MARGINS[3]];
        let x = |t: f64| left + MARGINS[0] + (t - t0) / (t1 - t0) * inner[0];
        let y = |v: f64| top + MARGINS[1] + (high - v) / (high - low) * inner[1];
        for tick in ticks(low, high) {
            let _ = writeln!(
                svg,
                "<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{2:.1}\" y2=\"{2:.1}\" stroke=\"{3}\"/><text x=\"{4:.1}\" y=\"{5:.1}\" \
                 text-anchor=\"end\">{6}</text>",
                x(t0),
                x(t1),
                y(tick),
                if tick == 0.0 { "#777" } else { "#e4e4e4" },
                x(t0) - 5.0,
                y(tick) + 4.0,
                short(tick)
            );
        }
        for tick in ticks(t0, t1) {
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                x(tick),
                top + PANEL[1] - 10.0,
                short(tick)
            );
        }
        for line in &self.lines {
            let place = |p: &[f64; 3], shift: f64| format!("{:.1},{:.1}", x(p[0]), y(p[1] + shift * error(p)));
            let above = line.points.iter().map(|p| place(p, 1.0));
            let below = line.points.iter().rev().map(|p| place(p, -1.0));
            let band: Vec<String> = above.chain(below).collect();
            let path: Vec<String> = line.points.iter().map(|p| place(p, 0.0)).collect();
            let _ = writeln!(
                svg,
                "<polygon points=\"{}\" fill=\"{2}\" opacity=\"0.18\"/><polyline points=\"{}\" fill=\"none\" stroke=\"{2}\" \
                 stroke-width=\"1.6\" stroke-dasharray=\"{3}\"/>",
                band.join(" "),
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

/// A number in few digits.
fn short(v: f64) -> String {
    let text = if v == 0.0 || (1e-3..1e5).contains(&v.abs()) { format!("{v:.4}") } else { return format!("{v:.1e}") };
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        assert_eq!(ticks(0.0, 999.0), [0.0, 250.0, 500.0, 750.0]);
        assert_eq!(ticks(-0.013, 0.04).first(), Some(&0.0));
        assert_eq!([0.0, 250.0, 0.025, -1.5, 1e-5, 2e6].map(short), ["0", "250", "0.025", "-1.5", "1.0e-5", "2.0e6"]);
    }

    #[test]
    fn names_cannot_break_the_picture() {
        assert_eq!(escaped("<a> & b"), "&lt;a&gt; &amp; b");
    }
}
