//! Runs as a page: one HTML file that shows how they went, and needs no network.

mod figures;
mod page;
mod read;

pub(crate) use figures::{bias_figures, figure};
pub use page::{Frame, Links, content, title};
pub(crate) use page::{figure_block, named, table as table_of};
pub use read::Run;

use crate::config::ConfigError;
use crate::file::write_atomic;
use crate::{Error, file};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use figures::thinned;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Lines of a log that a page carries at most.
const MOST_LINES: usize = 5000;

/// Reads run directories, each once and under a name of its own.
///
/// # Errors
/// No directory, one that holds no run, one that is named twice.
fn read(paths: &[PathBuf]) -> Result<Vec<Run>, Error> {
    let mut runs = Vec::new();
    for (at, path) in paths.iter().enumerate() {
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        if paths[..at].iter().any(|other| real(other) == real(path)) {
            return Err(ConfigError(format!("{} is named twice: name each run once", path.display())).into());
        }
        runs.push(Run::read(path)?);
    }
    read::tell_apart(&mut runs);
    Ok(runs)
}

/// Writes a page about some runs, with pictures and logs in the file.
///
/// # Errors
/// No directory, one that holds no run, one that is named twice; failing writes.
pub fn write(paths: &[PathBuf], out: &Path) -> Result<(), Error> {
    if out.is_dir() {
        return Err(
            ConfigError(format!("--out {} is a folder: name a file, such as report.html", out.display())).into()
        );
    }
    file::check_kind(out, "page", b"<!DOCTYPE html>")?;
    let runs = read(paths)?;
    let (version, now) = (env!("CARGO_PKG_VERSION"), humantime::format_rfc3339_seconds(SystemTime::now()));
    let runs: Vec<&Run> = runs.iter().collect();
    let (title, note) = (title(&runs), format!("Written by ddpm-ip {version} at {now}."));
    let text = Frame { title: &title, note: &note, others: &[], script: "" }.around(&content(&runs, &Inside));
    file::create_folder(file::folder_of(out))?;
    write_atomic(out, |w| w.write_all(text.as_bytes()))
}

/// Everything is in the page itself.
pub(crate) struct Inside;

impl Links for Inside {
    fn grid(&self, run: &Run, step: u64) -> String {
        let path = run.grids.iter().find(|(of, _)| *of == step).map(|(_, path)| path);
        let bytes = path.and_then(|path| std::fs::read(path).ok()).unwrap_or_default();
        format!("data:image/png;base64,{}", STANDARD.encode(bytes))
    }

    fn log(&self, run: &Run) -> String {
        format!("data:text/csv;charset=utf-8;base64,{}", STANDARD.encode(table(run)))
    }
}

/// A run's log as a table, comma-separated; of a long one means over neighbouring lines.
pub fn table(run: &Run) -> String {
    let steps = run.column("step");
    let group = steps.len().div_ceil(MOST_LINES).max(1);
    let names: Vec<&str> = run.history.iter().map(|(name, _)| name.as_str()).collect();
    let mut text = names.join(",") + "\n";
    for from in (0..steps.len()).step_by(group) {
        for (at, (name, values)) in run.history.iter().enumerate() {
            let all = &values[from..(from + group).min(values.len())];
            // The step of a group is its last.
            let value = match name.as_str() {
                "step" | "samples" => all.last().copied(),
                _ => thinned(all, all, 1).first().map(|point| point[1]),
            };
            let _ = write!(text, "{}{}", if at > 0 { "," } else { "" }, value.map_or(String::new(), |v| v.to_string()));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(name: &str, log: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.join("samples")).unwrap();
        std::fs::write(path.join("config.toml"), "[perturbation]\ngamma = 0.1\n").unwrap();
        std::fs::write(path.join("progress.csv"), log).unwrap();
        (folder, path)
    }

    #[test]
    fn a_page_needs_nothing_but_itself() {
        let (_kept, path) = run("a", "step,loss,loss_q0,grad_norm\n1,0.9,1,2\n2,0.5,,1\n3,0.25,0.3,0.5\n");
        for step in [2, 30] {
            std::fs::write(path.join(format!("samples/step_{step:06}.png")), "PNG").unwrap();
        }
        let out = path.join("report.html");
        write(std::slice::from_ref(&path), &out).unwrap();
        let page = std::fs::read_to_string(out).unwrap();
        let links: Vec<&str> = ["src=\"", "href=\""].iter().flat_map(|at| page.split(at).skip(1)).collect();
        assert!(!links.is_empty() && links.iter().all(|link| link.starts_with("data:")), "{links:?}");
        for part in
            ["loss by quarter of t", "norm of the gradient", "data-steps=\"2,30\"", "As the preset", "gamma = 0.1"]
        {
            assert!(page.contains(part), "{part}");
        }
        assert!(!page.contains("NaN"));
    }

    #[test]
    fn runs_of_one_name_are_told_apart_and_named_once() {
        let ((_a, first), (_b, second)) = (run("run", "step\n1\n"), run("run", "step\n1\n"));
        let runs = read(&[first.clone(), second.clone()]).unwrap();
        assert!(runs[0].name != runs[1].name && runs.iter().all(|run| run.name.ends_with("/run")));
        let error = read(&[first.clone(), first.join("../run")]).err().unwrap().to_string();
        assert!(error.contains("named twice"), "{error}");
        let error = read(&[first.join("samples")]).err().unwrap().to_string();
        assert!(error.contains("no run directory"), "{error}");
    }

    #[test]
    fn a_run_that_has_only_begun_has_a_page_too() {
        let (_kept, path) = run("a", "");
        let run = Run::read(&path).unwrap();
        let page = content(&[&run], &Inside).into_string();
        assert!(page.contains("not known") && !page.contains("<svg xmlns"), "{page}");
    }

    #[test]
    fn long_logs_become_tables_of_means() {
        let mut log = String::from("step,loss\n");
        (1..=12_000).for_each(|step| writeln!(log, "{step},{}", step % 2).unwrap());
        let (_kept, path) = run("a", &log);
        let table = table(&Run::read(&path).unwrap());
        assert_eq!(table.lines().count(), 4001);
        let row: Vec<f64> = table.lines().nth(1).unwrap().split(',').map(|field| field.parse().unwrap()).collect();
        assert!(row[0] == 3.0 && (row[1] - 2.0 / 3.0).abs() < 1e-12, "{row:?}");
    }
}
