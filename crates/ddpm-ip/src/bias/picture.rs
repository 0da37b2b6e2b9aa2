//! The curves of a report as a picture.

use super::{Curve, Entry, Report};
use crate::plot::{COLOURS, Line, Panel, escaped, picture};
use std::fmt::Write;

/// Columns of panels.
const COLUMNS: usize = 3;

fn line(colour: &'static str, dash: &'static str, t: &[f64], curve: &Curve) -> Line {
    let points = t.iter().zip(&curve.value).zip(&curve.error).map(|((&t, &value), &error)| [t, value, error]);
    Line { colour, dash, points: points.filter(|p| p[1].is_finite()).collect() }
}

/// The picture, as SVG.
pub(super) fn draw(report: &Report) -> String {
    let panels = panels(report);
    let head = 24.0 * report.checkpoints.len() as f64 + 16.0;
    picture(&panels, COLUMNS, head, |svg| {
        for (i, (entry, colour)) in report.checkpoints.iter().zip(COLOURS.iter().cycle()).enumerate() {
            let y = 24.0 * i as f64 + 20.0;
            let corrected = if entry.correct.is_empty() { String::new() } else { format!(", {}", entry.correct) };
            let text = format!(
                "{}: {}, {} steps, {} images{corrected}",
                entry.name,
                entry.sampler,
                entry.readings.t.len(),
                report.images
            );
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

fn panels(report: &Report) -> Vec<Panel> {
    let lines = |of: &dyn Fn(&Entry) -> Vec<(&'static str, Curve)>| {
        let entries = report.checkpoints.iter().zip(COLOURS.iter().cycle());
        entries
            .flat_map(|(entry, colour)| {
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
        let entries = report.checkpoints.iter().zip(COLOURS.iter().cycle());
        let of_entry = |entry: &Entry, colour, dash, of: &dyn Fn(&super::StartStep) -> [f64; 2]| Line {
            colour,
            dash,
            points: entry.readings.start.iter().map(|s| [s.t, of(s)[0], of(s)[1]]).collect(),
        };
        entries
            .flat_map(|(e, colour)| {
                [of_entry(e, colour, "", &|s| s.deterministic), of_entry(e, colour, "5 3", &|s| s.stochastic)]
            })
            .collect()
    };
    vec![
        Panel { title: "prediction error ν".into(), lines: one(|e| &e.readings.prediction_error) },
        Panel {
            title: "variance error δ (dashed: a perfect sampler's)".into(),
            lines: lines(&|e| {
                let r = &e.readings;
                vec![("", r.variance_error.clone()), ("5 3", exact(&r.variance_error_floor))]
            }),
        },
        Panel { title: "excess of the variance of sampled x".into(), lines: one(|e| &e.readings.variance_excess) },
        Panel {
            title: "excess of the variance in short chains, at least".into(),
            lines: one(|e| &e.readings.short_variance_excess),
        },
        Panel {
            title: "norm of ε, sampling over training, less 1".into(),
            lines: lines(&|e| {
                let (s, t) = (&e.readings.norm_sampling, &e.readings.norm_training);
                let ratio = (0..s.len()).map(|i| s.at(i).over(t.at(i)).less(1.0)).collect();
                vec![("", ratio)]
            }),
        },
        Panel { title: "effective timestep, less t".into(), lines: one(|e| &e.readings.effective_shift) },
        Panel {
            title: "energy of x, sampled over true, less 1 (dashed: high)".into(),
            lines: bands(|e| &e.readings.state_energy),
        },
        Panel {
            title: "energy of x̂₀, sampled over true, less 1 (dashed: high)".into(),
            lines: bands(|e| &e.readings.x_start_energy),
        },
        Panel { title: "input gradient ‖J‖".into(), lines: one(|e| &e.readings.input_gradient) },
        Panel { title: "distance from x₀ by start step (dashed: DDPM)".into(), lines: starts() },
    ]
}
