//! The page.

use super::figures::{Figure, figures};
use super::read::Run;
use crate::plot::COLOURS;
use crate::words::{grouped, number, rate, time};
use ddpm_math::Mode;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use std::collections::BTreeSet;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The most grids of a run that a page shows, the first and the last among them.
const MOST_GRIDS: usize = 40;

/// Where a page finds what belongs to a run but is no text.
pub trait Links {
    /// The address of a sample grid.
    fn grid(&self, run: &Run, step: u64) -> String;
    /// The address of its log as a table.
    fn log(&self, run: &Run) -> String;
}

/// What stands around the [`content`] of a page.
pub struct Frame<'a> {
    /// The page's name.
    pub title: &'a str,
    /// How it came to be.
    pub note: &'a str,
    /// Links to other pages: name and address; the page itself has none.
    pub others: &'a [(String, Option<String>)],
    /// A script that goes on with the page.
    pub script: &'a str,
}

impl Frame<'_> {
    /// A whole page.
    pub fn around(&self, content: &Markup) -> String {
        let all = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { (self.title) " · ddpm-ip" }
                    link rel="icon" href="data:,";
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    header {
                        h1 { (self.title) }
                        p #note .faint { (self.note) }
                        @if !self.others.is_empty() {
                            nav aria-label="Runs" {
                                ul {
                                    @for (name, address) in self.others {
                                        li {
                                            @match address {
                                                Some(address) => a href=(address) { (name) },
                                                None => strong aria-current="page" { (name) },
                                            }
                                        }
                                    }
                                }
                            }
                        }
                    }
                    main { (content) }
                    script { (PreEscaped(SCRIPT)) (PreEscaped(self.script)) }
                }
            }
        };
        all.into_string()
    }
}

/// The title of a page about some runs.
pub fn title(runs: &[&Run]) -> String {
    match runs {
        [run] => run.name.clone(),
        runs => format!("{} runs", runs.len()),
    }
}

/// What a page says.
pub fn content(runs: &[&Run], links: &dyn Links) -> Markup {
    html! {
        (summary(runs))
        @for (title, about, figures) in figures(runs) {
            section {
                h2 { (title) }
                @if !about.is_empty() { p { (about) } }
                div.figures { @for figure in &figures { (figure_block(figure)) } }
            }
        }
        (grids(runs, links))
        (evaluations(runs))
        (settings(runs))
        (machines(runs))
        (data(runs, links))
    }
}

/// A square in a run's colour.
fn swatch(colour: &str) -> Markup {
    html! { span.swatch style={ "background:" (colour) } aria-hidden="true" {} }
}

/// The name of a run after its colour.
pub(crate) fn named(at: usize, name: &str) -> Markup {
    html! { (swatch(COLOURS[at % COLOURS.len()])) (name) }
}

/// A table that scrolls by itself where the page is narrow.
pub(crate) fn table(label: &str, inner: &Markup) -> Markup {
    html! { div.scroll tabindex="0" role="region" aria-label=(label) { table { (inner) } } }
}

fn summary(runs: &[&Run]) -> Markup {
    let head = ["Run", "State", "Steps", "Images seen", "Training time", "γ", "Speed", "Loss", "Best distance"];
    let inner = html! {
        thead { tr { @for name in head { th scope="col" { (name) } } } }
        tbody {
            @for (at, run) in runs.iter().enumerate() {
                tr {
                    th scope="row" { (named(at, &run.name)) }
                    td.long[run.state().len() > 30] { (run.state()) }
                    td.number { (run.last("step").map_or("–".into(), grouped)) }
                    td.number { (run.last("samples").map_or("–".into(), grouped)) }
                    td.number { (run.elapsed.map_or("–".into(), time)) }
                    td.number { (perturbation(run)) }
                    td.number { (run.last("images_per_sec").map_or("–".into(), rate)) }
                    td.number { (run.last("loss").or(run.last("train_loss")).map_or("–".into(), number)) }
                    td.number {
                        @match run.distances.best() {
                            Some((step, distance)) => { (number(distance)) " at step " (grouped(step as f64)) }
                            None => "–",
                        }
                    }
                }
            }
        }
    };
    html! {
        section {
            h2 { "Summary" }
            (table("Summary", &inner))
            @for run in runs { @for remark in &run.remarks { p.warning { (remark) } } }
        }
    }
}

/// The strength of the input perturbation, and its form if it is not the paper's.
fn perturbation(run: &Run) -> String {
    let rule = &run.config.perturbation;
    match rule.mode {
        Mode::Sampled => rule.gamma.to_string(),
        mode => format!("{} ({})", rule.gamma, mode.name()),
    }
}

pub(crate) fn figure_block(figure: &Figure) -> Markup {
    html! {
        figure {
            (PreEscaped(&figure.svg))
            figcaption {
                @for (colour, dash, name) in &figure.legend {
                    span.key {
                        svg width="22" height="8" aria-hidden="true" {
                            line x1="0" x2="22" y1="4" y2="4" stroke=(colour) stroke-width="3" stroke-dasharray=(dash) {}
                        }
                        (name)
                    }
                }
            }
        }
    }
}

/// The steps whose grids are shown: all, or evenly chosen ones.
fn shown_grids(run: &Run) -> Vec<u64> {
    let (count, last) = (run.grids.len(), run.grids.len().saturating_sub(1));
    let chosen: BTreeSet<usize> = if count <= MOST_GRIDS {
        (0..count).collect()
    } else {
        (0..MOST_GRIDS).map(|i| i * last / (MOST_GRIDS - 1)).collect()
    };
    chosen.into_iter().map(|at| run.grids[at].0).collect()
}

fn grids(runs: &[&Run], links: &dyn Links) -> Markup {
    let shown: Vec<Vec<u64>> = runs.iter().map(|run| shown_grids(run)).collect();
    let steps: BTreeSet<u64> = shown.iter().flatten().copied().collect();
    let Some(last) = steps.last() else { return Markup::default() };
    let list: Vec<String> = steps.iter().map(u64::to_string).collect();
    html! {
        section.grids {
            h2 { "Samples while it trained" }
            p { "Drawn with the EMA, always from the same noise." }
            @if steps.len() > 1 {
                p.slider {
                    label for="step" { "Step" }
                    input #step type="range" min="0" max=(steps.len() - 1) value=(steps.len() - 1) data-steps=(list.join(","));
                    output for="step" { (last) }
                }
            }
            div.figures {
                @for (at, (run, shown)) in runs.iter().zip(&shown).enumerate() {
                    @if let Some(newest) = shown.last() {
                        figure {
                            @for step in shown {
                                @let is_hidden = step != newest;
                                img data-step=(step) loading=[is_hidden.then_some("lazy")] hidden[is_hidden]
                                    src=(links.grid(run, *step))
                                    alt={ "Samples of " (run.name) " after " (step) " steps" };
                            }
                            figcaption { (named(at, &run.name)) ": step " span.at { (newest) } }
                        }
                    }
                }
            }
        }
    }
}

fn evaluations(runs: &[&Run]) -> Markup {
    let rows: Vec<_> =
        runs.iter().enumerate().flat_map(|(at, run)| run.distances.samples.iter().map(move |e| (at, run, e))).collect();
    if rows.is_empty() {
        return Markup::default();
    }
    let head = ["Run", "Samples", "Images", "Reference", "Features", "Fréchet distance", "Precision", "Recall"];
    let some = |value: Option<f64>| value.map_or("–".into(), number);
    let inner = html! {
        thead { tr { @for name in head { th scope="col" { (name) } } } }
        tbody {
            @for (at, run, e) in rows {
                tr {
                    th scope="row" { (named(at, &run.name)) }
                    td { (e.samples.source) }
                    td.number { (e.samples.images.map_or("–".into(), |n| grouped(n as f64))) }
                    td { (e.reference.source) }
                    td { (e.features) }
                    td.number { (number(e.fid)) }
                    td.number { (some(e.precision)) }
                    td.number { (some(e.recall)) }
                }
            }
        }
    };
    html! {
        section {
            h2 { "Samples compared with real images" }
            p { "Distances of different numbers of images, references or features do not compare." }
            (table("Evaluations", &inner))
        }
    }
}

fn settings(runs: &[&Run]) -> Markup {
    let differing = |run: &Run| -> Markup {
        let (preset, changes) = run.nearest_preset();
        html! {
            h3 { (run.name) }
            @if changes.is_empty() {
                p { "As the preset " code { (preset) } "." }
            } @else {
                p { "As the preset " code { (preset) } ", but for " (changes.len()) " settings:" }
                (table("Settings that differ from the preset", &html! {
                    thead { tr { th scope="col" { "Setting" } th scope="col" { "Here" } th scope="col" { (preset) } } }
                    tbody {
                        @for (key, here, there) in &changes {
                            tr { th scope="row" { code { (key) } } td { code { (here) } } td { code { (there) } } }
                        }
                    }
                }))
            }
            details { summary { "All settings" } pre { (run.config.to_toml()) } }
        }
    };
    html! {
        section {
            h2 { "Settings" }
            @if runs.len() > 1 { (compared(runs)) }
            @for run in runs { (differing(run)) }
        }
    }
}

/// The settings in which the runs differ.
fn compared(runs: &[&Run]) -> Markup {
    let first = &runs[0].config;
    let keys: BTreeSet<String> =
        runs[1..].iter().flat_map(|run| run.config.changes_from(first)).map(|(key, ..)| key).collect();
    if keys.is_empty() {
        return html! { p { "The runs have the same settings." } };
    }
    let tables: Vec<toml::Table> = runs.iter().map(|run| run.config.to_toml().parse().unwrap_or_default()).collect();
    let value = |table: &toml::Table, key: &str| {
        let value = key.split_once('.').and_then(|(section, name)| table.get(section)?.get(name));
        value.map_or(String::new(), ToString::to_string)
    };
    let inner = html! {
        thead {
            tr {
                th scope="col" { "Setting" }
                @for (at, run) in runs.iter().enumerate() { th scope="col" { (named(at, &run.name)) } }
            }
        }
        tbody {
            @for key in &keys {
                tr { th scope="row" { code { (key) } } @for table in &tables { td { code { (value(table, key)) } } } }
            }
        }
    };
    html! { p { "The runs differ in:" } (table("Settings in which the runs differ", &inner)) }
}

fn machines(runs: &[&Run]) -> Markup {
    if runs.iter().all(|run| run.calls.is_empty()) {
        return Markup::default();
    }
    let head = ["Run", "Began", "Steps", "Ended", "Program", "On"];
    let inner = html! {
        thead { tr { @for name in head { th scope="col" { (name) } } } }
        tbody {
            @for (at, run) in runs.iter().enumerate() {
                @for call in &run.calls {
                    tr {
                        th scope="row" { (named(at, &run.name)) }
                        td.date { (call.began) }
                        td.number { (call.from) "–" @if let Some(to) = call.to { (to) } }
                        td.date { (call.ended.as_deref().unwrap_or("–")) }
                        td { (call.program) }
                        td.long { (call.on) }
                    }
                }
            }
        }
    };
    html! { section { h2 { "Machines and versions" } (table("Calls that trained the runs", &inner)) } }
}

fn data(runs: &[&Run], links: &dyn Links) -> Markup {
    html! {
        section {
            h2 { "Data" }
            ul {
                @for (at, run) in runs.iter().enumerate() {
                    @if !run.history.is_empty() {
                        @let file = format!("{}.csv", run.name.replace('/', "-"));
                        li { a href=(links.log(run)) download=(file) { (named(at, &run.name)) ": log as CSV" } }
                    }
                }
            }
        }
    }
}
