//! The page of a comparison.

use super::job::{Drawn, Job, Point, Results, SHOWN};
use super::plan::Member;
use crate::Error;
use crate::data::contact_sheet;
use crate::file::write_atomic;
use crate::npz::Npz;
use crate::plot::{Axis, COLOURS, Line};
use crate::report::{self, Frame, Inside, Run, bias_figures, figure, figure_block, named, table_of as table};
use crate::words::number;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ddpm_math::mean_and_error;
use maud::{Markup, html};
use std::collections::BTreeSet;
use std::io::Write;
use std::time::SystemTime;

/// Student's t for an interval of 95 %, by degrees of freedom from 1 on; beyond, the normal distribution's and a little.
const STUDENT: [f64; 12] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179];

/// The mean of some values and half the width of its interval of 95 % over seeds; NaN of a single one.
pub(super) fn interval(values: &[f64]) -> (f64, f64) {
    let Some((mean, error)) = mean_and_error(values) else {
        return (values.first().copied().unwrap_or(f64::NAN), f64::NAN);
    };
    let freedom = values.len() - 1;
    (mean, error * STUDENT.get(freedom - 1).copied().unwrap_or(1.96 + 2.4 / freedom as f64))
}

/// Writes the page of what is there so far.
pub(super) fn write(job: &Job, members: &[Member], results: &Results) -> Result<(), Error> {
    let mut variants: Vec<&str> = Vec::new();
    for member in members {
        if !variants.contains(&member.variant.as_str()) {
            variants.push(&member.variant);
        }
    }
    let first = |variant: &&str| {
        let member = members.iter().find(|member| member.variant == **variant)?;
        Some(Run { name: (*variant).to_string(), ..Run::read(&member.run).ok()? })
    };
    let runs: Vec<Run> = variants.iter().filter_map(first).collect();
    let runs: Vec<&Run> = runs.iter().collect();
    let content = html! {
        (distances(&variants, results))
        (biases(&variants, members, results))
        (samples(&variants, members, results)?)
        (report::content(&runs, &Inside))
    };
    let now = humantime::format_rfc3339_seconds(SystemTime::now());
    let title = variants.join(", ");
    let note = format!("Compared by ddpm-ip {} at {now}.", env!("CARGO_PKG_VERSION"));
    let text = Frame { title: &title, note: &note, others: &[], script: "" }.around(&content);
    write_atomic(&job.out.join("index.html"), |w| w.write_all(text.as_bytes()))
}

/// The distances of a variant, sampled in one way, a seed each.
fn of<'a>(results: &'a Results, variant: &str, way: &Way) -> Vec<&'a Point> {
    let same = |point: &&Point| point.variant.as_deref() == Some(variant) && way.is_of(point);
    results.points.iter().filter(same).collect()
}

/// A way to sample: sampler, images, steps.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    sampler: String,
    images: usize,
    steps: usize,
}

impl Way {
    fn is_of(&self, point: &Point) -> bool {
        point.sampler == self.sampler && point.images == self.images && point.steps == self.steps
    }
}

fn distances(variants: &[&str], results: &Results) -> Markup {
    let ways: BTreeSet<Way> = results
        .points
        .iter()
        .filter(|point| point.variant.is_some())
        .map(|p| Way { sampler: p.sampler.clone(), images: p.images, steps: p.steps })
        .collect();
    let Some(any) = results.points.first() else { return Markup::default() };
    let real = |images: usize| results.points.iter().find(|p| p.variant.is_none() && p.images == images);
    let inner = html! {
        thead {
            tr {
                th scope="col" { "Sampler" } th scope="col" { "Steps" } th scope="col" { "Images" }
                @for (at, variant) in variants.iter().enumerate() { th scope="col" { (named(at, variant)) } }
                @if results.points.iter().any(|p| p.variant.is_none()) { th scope="col" { "Real images" } }
            }
        }
        tbody {
            @for way in &ways {
                tr {
                    th scope="row" { (way.sampler) } td.number { (way.steps) } td.number { (way.images) }
                    @for variant in variants {
                        @let all: Vec<f64> = of(results, variant, way).iter().map(|p| p.fid).collect();
                        td.number { (words(&all)) }
                    }
                    @if let Some(real) = real(way.images) { td.number { (number(real.fid)) } }
                }
            }
        }
    };
    let samplers: BTreeSet<(String, usize)> = ways.iter().map(|way| (way.sampler.clone(), way.images)).collect();
    let figures = samplers.iter().filter_map(|(sampler, images)| {
        let lines = variants.iter().enumerate().map(|(at, variant)| {
            let of_steps = ways.iter().filter(|way| way.sampler == *sampler && way.images == *images);
            let points = of_steps.filter_map(|way| {
                let all: Vec<f64> = of(results, variant, way).iter().map(|p| p.fid).collect();
                let (mean, half) = interval(&all);
                (!all.is_empty()).then_some([way.steps as f64, mean, half])
            });
            ((*variant).to_string(), Line { colour: COLOURS[at % COLOURS.len()], dash: "", points: points.collect() })
        });
        figure(&format!("Fréchet distance by steps: {sampler}, {images} images"), Axis::Zero, lines.collect())
    });
    html! {
        section {
            h2 { "Fréchet distance" }
            p {
                "From " code { (any.reference) } " by " (any.features) ". Means over seeds with intervals of 95 % \
                 (Student's t), and each seed in brackets. Distances of different numbers of images do not compare."
            }
            (table("Fréchet distances", &inner))
            div.figures { @for figure in figures { (figure_block(&figure)) } }
        }
    }
}

/// Distances over seeds in words.
fn words(all: &[f64]) -> String {
    let each = || all.iter().map(|&v| number(v)).collect::<Vec<_>>().join(", ");
    match interval(all) {
        _ if all.is_empty() => "–".into(),
        (mean, half) if half.is_finite() => format!("{} ± {} ({})", number(mean), number(half), each()),
        (mean, _) => number(mean),
    }
}

fn biases(variants: &[&str], members: &[Member], results: &Results) -> Markup {
    let place = |name: &str| variants.iter().position(|variant| *variant == name).unwrap_or(0);
    let reports = results.bias.iter().map(|(at, report)| (members[*at].variant.as_str(), report));
    let figures = bias_figures(&reports.map(|(name, report)| (place(name), name, report)).collect::<Vec<_>>());
    if figures.is_empty() {
        return Markup::default();
    }
    html! {
        section {
            h2 { "Exposure bias" }
            p { "Of each variant's first seed; a band is one standard error over images." }
            div.figures { @for figure in &figures { (figure_block(figure)) } }
        }
    }
}

/// The first images of each variant's first seed, drawn from the same noise.
fn samples(variants: &[&str], members: &[Member], results: &Results) -> Result<Markup, Error> {
    let mut ways: Vec<(&str, usize)> = Vec::new();
    for drawn in &results.drawn {
        if !ways.contains(&(drawn.sampler.as_str(), drawn.steps)) {
            ways.push((&drawn.sampler, drawn.steps));
        }
    }
    if ways.is_empty() {
        return Ok(Markup::default());
    }
    let mut blocks = Vec::new();
    for (i, (sampler, steps)) in ways.iter().enumerate() {
        let mut pictures = Vec::new();
        for (at, variant) in variants.iter().enumerate() {
            let of = |drawn: &&Drawn| {
                drawn.sampler == *sampler && drawn.steps == *steps && members[drawn.member].variant == *variant
            };
            if let Some(drawn) = results.drawn.iter().find(of) {
                pictures.push((at, *variant, picture(drawn)?));
            }
        }
        blocks.push(html! {
            details open[i == 0] {
                summary { (sampler) ", " (steps) " steps" }
                div.figures {
                    @for (at, variant, picture) in &pictures {
                        figure {
                            img src=(picture) alt={ "Samples of " (variant) " by " (sampler) " in " (steps) " steps" };
                            figcaption { (named(*at, variant)) }
                        }
                    }
                }
            }
        });
    }
    Ok(html! {
        section {
            h2 { "Samples" }
            p { "The same place has the same noise." }
            @for block in &blocks { (block) }
        }
    })
}

fn picture(drawn: &Drawn) -> Result<String, Error> {
    let mut npz = Npz::open(&drawn.file)?;
    let head = npz.head("arr_0")?;
    let [count, size, _, channels] = head.shape[..] else {
        return Err(Error::file(&drawn.file, "does not hold images"));
    };
    let (shown, mut images) = (count.min(SHOWN), Vec::new());
    npz.byte_rows::<Error>("arr_0", shown, &mut |rows| {
        images.extend_from_slice(rows);
        Ok(false)
    })?;
    let png = contact_sheet(&images, shown, size, channels).png();
    Ok(format!("data:image/png;base64,{}", STANDARD.encode(png)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_students() {
        let (mean, half) = interval(&[1.0, 2.0, 3.0]);
        assert!((mean - 2.0).abs() < 1e-12 && (half - 4.303 / 3f64.sqrt()).abs() < 1e-12);
        assert!(interval(&[1.0]).1.is_nan());
        // Of 14 values the quantile is 2.160; the formula for many is within a per cent.
        let many: Vec<f64> = (0..14).map(f64::from).collect();
        assert!((interval(&many).1 / (2.160 * (17.5f64 / 14.0).sqrt()) - 1.0).abs() < 0.01);
        assert_eq!(words(&[1.0, 1.5]), "1.250 ± 3.176 (1.000, 1.500)");
        assert_eq!(words(&[0.5]), "0.5000");
    }
}
