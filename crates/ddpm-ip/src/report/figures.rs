//! The figures of a page.

use super::read::Run;
use crate::bias;
use crate::plot::{Axis, COLOURS, Line, Panel};

/// A figure's size in its own units.
const SIZE: [f64; 2] = [440.0, 250.0];

/// Points of a line at most.
const POINTS: usize = 400;

/// Dashes that tell the lines of one run apart.
const DASHES: [&str; 4] = ["", "6 3", "2 3", "9 3 2 3"];

/// A picture with what its lines mean: colour, dash, name.
pub(crate) struct Figure {
    pub(super) svg: String,
    pub(super) legend: Vec<(&'static str, &'static str, String)>,
}

/// Sections of figures: title, what is to be known, figures.
pub(super) fn figures(runs: &[&Run]) -> Vec<(&'static str, &'static str, Vec<Figure>)> {
    let sections = [
        (
            "Loss",
            "Weighted mean over the steps since the line before, in all and by quarter of the timesteps.",
            losses(runs),
        ),
        ("Training", "", training(runs)),
        (
            "Distance over training",
            "Of the EMA's samples from real images. Lines are of the same number of images, reference and features.",
            distances(runs),
        ),
        (
            "Exposure bias",
            "Over the noise levels that the sampler visits; a band is one standard error. Networks compare under the same sampler \
             and steps.",
            biases(runs),
        ),
    ];
    sections.into_iter().filter(|(.., figures)| !figures.is_empty()).collect()
}

fn colour(at: usize) -> &'static str {
    COLOURS[at % COLOURS.len()]
}

/// As many points as are seen: means over equally many neighbours.
pub(super) fn thinned(steps: &[f64], values: &[f64], most: usize) -> Vec<[f64; 3]> {
    let all: Vec<[f64; 2]> =
        steps.iter().zip(values).map(|(&s, &v)| [s, v]).filter(|[s, v]| s.is_finite() && v.is_finite()).collect();
    let group = all.len().div_ceil(most).max(1);
    let mean = |points: &[[f64; 2]], of: usize| points.iter().map(|p| p[of]).sum::<f64>() / points.len() as f64;
    all.chunks(group).map(|points| [mean(points, 0), mean(points, 1), 0.0]).collect()
}

/// A figure of one column of every run.
fn of_column(runs: &[&Run], title: &str, axis: Axis, columns: &[&str]) -> Option<Figure> {
    let lines = runs.iter().enumerate().filter_map(|(at, run)| {
        let values = columns.iter().map(|name| run.column(name)).find(|values| !values.is_empty())?;
        let points = thinned(run.column("step"), values, POINTS);
        Some((run.name.clone(), Line { colour: colour(at), dash: "", points }))
    });
    figure(title, axis, lines.collect())
}

/// A figure of named lines; none without two points.
pub(crate) fn figure(title: &str, axis: Axis, lines: Vec<(String, Line)>) -> Option<Figure> {
    let lines: Vec<(String, Line)> = lines.into_iter().filter(|(_, line)| line.points.len() > 1).collect();
    if lines.is_empty() {
        return None;
    }
    let legend = lines.iter().map(|(name, line)| (line.colour, line.dash, name.clone())).collect();
    let panel = Panel { title: title.into(), axis, lines: lines.into_iter().map(|(_, line)| line).collect() };
    Some(Figure { svg: panel.figure(SIZE), legend })
}

const QUARTERS: [(&str, &str); 4] = [
    ("q0", "first quarter of t: least noise"),
    ("q1", "second quarter"),
    ("q2", "third quarter"),
    ("q3", "last quarter: most noise"),
];

fn losses(runs: &[&Run]) -> Vec<Figure> {
    let all = of_column(runs, "loss", Axis::Log, &["loss", "train_loss"]);
    // One run's quarters go into one figure.
    if let [run] = runs {
        let quarter = |(at, (suffix, name)): (usize, &(&str, &str))| {
            let points = thinned(run.column("step"), run.column(&format!("loss_{suffix}")), POINTS);
            ((*name).to_string(), Line { colour: colour(at + 1), dash: "", points })
        };
        let quarters = figure("loss by quarter of t", Axis::Log, QUARTERS.iter().enumerate().map(quarter).collect());
        return all.into_iter().chain(quarters).collect();
    }
    let quarters = QUARTERS.iter().filter_map(|(suffix, name)| {
        of_column(runs, &format!("loss, {name}"), Axis::Log, &[&format!("loss_{suffix}")])
    });
    all.into_iter().chain(quarters).collect()
}

fn training(runs: &[&Run]) -> Vec<Figure> {
    [
        of_column(runs, "norm of the gradient", Axis::Log, &["grad_norm"]),
        of_column(runs, "images per second", Axis::Zero, &["images_per_sec"]),
        of_column(runs, "learning rate", Axis::Zero, &["lr"]),
        of_column(runs, "validation loss", Axis::Log, &["val_loss"]),
        of_column(runs, "share of images whose class was first", Axis::Zero, &["train_acc@1"]),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn distances(runs: &[&Run]) -> Vec<Figure> {
    let lines = runs.iter().enumerate().flat_map(|(at, run)| {
        run.distances.training.iter().enumerate().map(move |(series, (what, points))| {
            let points = points.iter().map(|&(step, fid)| [step as f64, fid, 0.0]).collect();
            let name = format!("{}: {what}", run.name);
            (name, Line { colour: colour(at), dash: DASHES[series % DASHES.len()], points })
        })
    });
    figure("Fréchet distance", Axis::Log, lines.collect()).into_iter().collect()
}

fn biases(runs: &[&Run]) -> Vec<Figure> {
    let all = runs.iter().enumerate();
    let all = all.flat_map(|(at, run)| run.bias.iter().map(move |report| (at, run.name.as_str(), report)));
    bias_figures(&all.collect::<Vec<_>>())
}

/// What the instruments read, each report in its place's colour and under its name.
pub(crate) fn bias_figures(reports: &[(usize, &str, &bias::Report)]) -> Vec<Figure> {
    let all = || reports.iter().flat_map(|(at, name, report)| report.checkpoints.iter().map(move |e| (*at, *name, e)));
    let legend: Vec<_> = all().map(|(at, name, e)| (colour(at), "", format!("{name}: {}", e.describe()))).collect();
    let entries: Vec<(&'static str, &bias::Entry)> = all().map(|(at, _, entry)| (colour(at), entry)).collect();
    if entries.is_empty() {
        return Vec::new();
    }
    let figure = |panel: &Panel| Figure { svg: panel.figure(SIZE), legend: legend.clone() };
    bias::panels(&entries).iter().map(figure).collect()
}
