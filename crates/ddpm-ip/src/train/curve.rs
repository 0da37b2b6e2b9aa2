//! The loss of a run as a picture.

use crate::Error;
use crate::plot::{COLOURS, Line, PANEL, Panel, escaped, picture};
use std::fmt::Write;
use std::path::Path;

/// Points of a curve at most: more are not seen.
const POINTS: usize = 500;

/// The columns that are drawn, and their names.
const COLUMNS: [(&str, &str); 5] =
    [("loss", "all"), ("loss_q0", "least noise"), ("loss_q1", "less"), ("loss_q2", "more"), ("loss_q3", "most noise")];

/// A run's loss, in all and by quarter of the timesteps, as SVG, drawn from its `progress.csv`.
///
/// # Errors
/// A log that cannot be read, or holds no loss yet.
pub fn loss_curve(run: &Path) -> Result<String, Error> {
    let log = run.join("progress.csv");
    let text = std::fs::read_to_string(&log).map_err(Error::io("read", &log))?;
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
    let rows: Vec<Vec<&str>> = lines.map(|line| line.split(',').collect()).collect();
    let column = |name: &str| names.iter().position(|n| *n == name);
    let step = column("step");
    let stride = rows.len().div_ceil(POINTS).max(1);
    let curve = |name: &str| -> Vec<[f64; 3]> {
        let Some((step, value)) = step.zip(column(name)) else { return Vec::new() };
        let number = |row: &Vec<&str>, at: usize| row.get(at).and_then(|text| text.parse::<f64>().ok());
        let finite = |v: &f64| v.is_finite();
        rows.iter()
            .step_by(stride)
            .filter_map(|row| Some([number(row, step)?, number(row, value).filter(finite)?, 0.0]))
            .collect()
    };
    let lines: Vec<(&str, Line)> = COLUMNS
        .iter()
        .zip(COLOURS)
        .map(|(&(column, name), colour)| (name, Line { colour, dash: "", points: curve(column) }))
        .filter(|(_, line)| line.points.len() > 1)
        .collect();
    if lines.is_empty() {
        return Err(Error::file(&log, "holds no curve yet: it takes two lines with a loss"));
    }
    let names: Vec<(&str, &str)> = lines.iter().map(|(name, line)| (*name, line.colour)).collect();
    let panel = Panel { title: "Loss by step".into(), lines: lines.into_iter().map(|(_, line)| line).collect() };
    Ok(picture(&[panel], 1, 20.0, |svg| {
        let width = PANEL[0] / names.len() as f64;
        for (i, (name, colour)) in names.iter().enumerate() {
            let x = 12.0 + width * i as f64;
            let _ = writeln!(svg, "<text x=\"{x}\" y=\"16\" fill=\"{colour}\">{}</text>", escaped(name));
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_becomes_a_picture_and_holes_in_it_stay_holes() {
        let folder = tempfile::tempdir().unwrap();
        let write = |text: &str| std::fs::write(folder.path().join("progress.csv"), text).unwrap();
        write("step,loss,loss_q0,lr\n1,0.9,,0.1\n2,0.5,0.25,0.1\n3,NaN,0.2,0.1\n4,0.4,0.1,0.1\n");
        let svg = loss_curve(folder.path()).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("least noise") && !svg.contains("NaN"), "{svg}");
        assert!(!svg.contains("most noise"), "a column that is not there has no curve");
        write("step,loss\n1,0.9\n");
        assert!(loss_curve(folder.path()).unwrap_err().to_string().contains("two lines"));
        std::fs::remove_file(folder.path().join("progress.csv")).unwrap();
        assert!(loss_curve(folder.path()).unwrap_err().to_string().contains("cannot read"));
    }
}
