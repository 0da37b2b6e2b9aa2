//! The curves of a report as a picture.

use super::{Curve, Entry, Report};
use crate::plot::{Axis, COLOURS, Line, Panel, escaped, picture};
use std::fmt::Write;

/// Columns of panels.
const COLUMNS: usize = 3;

fn line(colour: &'static str, dash: &'static str, t: &[f64], curve: &Curve) -> Line {
    let points = t.iter().zip(&curve.value).zip(&curve.error).map(|((&t, &value), &error)| [t, value, error]);
    Line { colour, dash, points: points.filter(|p| p[1].is_finite()).collect() }
}

/// The picture, as SVG.
pub(super) fn draw(report: &Report) -> String {
    let entries: Vec<(&'static str, &Entry)> = COLOURS.into_iter().cycle().zip(&report.checkpoints).collect();
    let head = 24.0 * entries.len() as f64 + 16.0;
    picture(&panels(&entries), COLUMNS, head, |svg| {
        for (i, (colour, entry)) in entries.iter().enumerate() {
            let y = 24.0 * i as f64 + 20.0;
            let text = format!("{}: {}, {} images", entry.name, entry.describe(), report.images);
            let _ = writeln!(
                svg,
                "<line x1=\"12\" x2=\"40\" y1=\"{0}\" y2=\"{0}\" stroke=\"{colour}\" stroke-width=\"3\"/><text x=\"48\" y=\"{y}\" \
             font-size=\"13\">{1}</text>",
                y - 4.0,
                escaped(&text)
            );
        }
    })
}

impl Entry {
    /// How its images were drawn, in words.
    pub(crate) fn describe(&self) -> String {
        let corrected = if self.correct.is_empty() { String::new() } else { format!(", {}", self.correct) };
        format!("{}, {} steps{corrected}", self.sampler, self.readings.t.len())
    }
}

/// The curves of some checkpoints, each in its colour.
pub(crate) fn panels(entries: &[(&'static str, &Entry)]) -> Vec<Panel> {
    let lines = |of: &dyn Fn(&Entry) -> Vec<(&'static str, Curve)>| {
        entries
            .iter()
            .flat_map(|(colour, entry)| {
                of(entry).into_iter().map(|(dash, curve)| line(colour, dash, &entry.readings.t, &curve))
            })
            .collect::<Vec<Line>>()
    };
    let exact = |values: &[f64]| Curve { value: values.to_vec(), error: vec![0.0; values.len()] };
    let one = |of: fn(&Entry) -> &Curve| lines(&|e| vec![("", of(e).clone())]);
    let bands = |of: fn(&Entry) -> &[Curve; 2]| {
        lines(&|e| {
            let [low, high] = of(e).clone();
            vec![("", low), ("5 3", high)]
        })
    };
    let starts = || {
        let of_entry = |entry: &Entry, colour, dash, of: &dyn Fn(&super::StartStep) -> [f64; 2]| Line {
            colour,
            dash,
            points: entry.readings.start.iter().map(|s| [s.t, of(s)[0], of(s)[1]]).collect(),
        };
        entries
            .iter()
            .flat_map(|(colour, e)| {
                [of_entry(e, colour, "", &|s| s.deterministic), of_entry(e, colour, "5 3", &|s| s.stochastic)]
            })
            .collect()
    };
    vec![
        Panel { title: "prediction error ν".into(), axis: Axis::Zero, lines: one(|e| &e.readings.prediction_error) },
        Panel {
            title: "variance error δ (dashed: a perfect sampler's)".into(),
            axis: Axis::Zero,
            lines: lines(&|e| {
                let r = &e.readings;
                vec![("", r.variance_error.clone()), ("5 3", exact(&r.variance_error_floor))]
            }),
        },
        Panel {
            title: "excess of the variance of sampled x".into(),
            axis: Axis::Zero,
            lines: one(|e| &e.readings.variance_excess),
        },
        Panel {
            title: "excess of the variance in short chains, at least".into(),
            axis: Axis::Zero,
            lines: one(|e| &e.readings.short_variance_excess),
        },
        Panel {
            title: "norm of ε, sampling over training, less 1".into(),
            axis: Axis::Zero,
            lines: lines(&|e| {
                let (s, t) = (&e.readings.norm_sampling, &e.readings.norm_training);
                let ratio = (0..s.len()).map(|i| s.at(i).over(t.at(i)).less(1.0)).collect();
                vec![("", ratio)]
            }),
        },
        Panel {
            title: "effective timestep, less t".into(),
            axis: Axis::Zero,
            lines: one(|e| &e.readings.effective_shift),
        },
        Panel {
            title: "energy of x, sampled over true, less 1 (dashed: high)".into(),
            axis: Axis::Zero,
            lines: bands(|e| &e.readings.state_energy),
        },
        Panel {
            title: "energy of x̂₀, sampled over true, less 1 (dashed: high)".into(),
            axis: Axis::Zero,
            lines: bands(|e| &e.readings.x_start_energy),
        },
        Panel { title: "input gradient ‖J‖".into(), axis: Axis::Zero, lines: one(|e| &e.readings.input_gradient) },
        Panel { title: "distance from x₀ by start step (dashed: DDPM)".into(), axis: Axis::Zero, lines: starts() },
    ]
}
