//! The log of a run, and its loss as a picture.

use crate::Error;
use crate::plot::{Axis, COLOURS, Line, PANEL, Panel, escaped, picture};
use std::fmt::Write;
use std::path::Path;

/// Points of a curve at most: more are not seen.
const POINTS: usize = 500;

/// The columns that are drawn, and their names.
const COLUMNS: [(&str, &str); 5] =
    [("loss", "all"), ("loss_q0", "least noise"), ("loss_q1", "less"), ("loss_q2", "more"), ("loss_q3", "most noise")];

/// The logs that are read, the first of which is there.
const TABLE: &str = "progress.csv";
const OBJECTS: [&str; 2] = ["stats.jsonl", "progress.json"];

/// A run's log, column by column in its order; what a line has not is NaN. A last line without its end, which a run may be
/// writing, is left out.
///
/// # Errors
/// A log that cannot be read.
pub fn history(run: &Path) -> Result<Vec<(String, Vec<f64>)>, Error> {
    let table = run.join(TABLE);
    let objects = OBJECTS.map(|name| run.join(name)).into_iter().find(|path| path.is_file());
    let path = objects.filter(|_| !table.is_file()).unwrap_or_else(|| table.clone());
    let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    Ok(if path == table { of_table(whole) } else { of_objects(whole) })
}

fn of_table(text: &str) -> Vec<(String, Vec<f64>)> {
    let mut lines = text.lines();
    let names = lines.next().unwrap_or_default().split(',');
    let mut columns: Vec<(String, Vec<f64>)> = names.map(|name| (name.to_string(), Vec::new())).collect();
    for line in lines {
        let mut fields = line.split(',').map(|field| field.parse().unwrap_or(f64::NAN));
        for (_, values) in &mut columns {
            values.push(fields.next().unwrap_or(f64::NAN));
        }
    }
    columns
}

fn of_objects(text: &str) -> Vec<(String, Vec<f64>)> {
    let lines: Vec<serde_json::Map<String, serde_json::Value>> =
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let mut columns: Vec<(String, Vec<f64>)> = Vec::new();
    for key in lines.iter().flat_map(|line| line.keys()) {
        if !columns.iter().any(|(name, _)| name == key) {
            let value = |line: &serde_json::Map<_, serde_json::Value>| line.get(key)?.as_f64();
            columns.push((key.clone(), lines.iter().map(|line| value(line).unwrap_or(f64::NAN)).collect()));
        }
    }
    columns
}

/// A run's loss, in all and by quarter of the timesteps, as SVG, drawn from its log.
///
/// # Errors
/// A log that cannot be read, or holds no loss yet.
pub fn loss_curve(run: &Path) -> Result<String, Error> {
    let history = history(run)?;
    let column = |name: &str| history.iter().find(|(column, _)| column == name).map(|(_, values)| values);
    let curve = |name: &str| -> Vec<[f64; 3]> {
        let Some((steps, values)) = column("step").zip(column(name)) else { return Vec::new() };
        let stride = steps.len().div_ceil(POINTS).max(1);
        let points = steps.iter().zip(values).step_by(stride).map(|(&step, &value)| [step, value, 0.0]);
        points.filter(|[step, value, _]| step.is_finite() && value.is_finite()).collect()
    };
    let lines: Vec<(&str, Line)> = COLUMNS
        .iter()
        .zip(COLOURS)
        .map(|(&(column, name), colour)| (name, Line { colour, dash: "", points: curve(column) }))
        .filter(|(_, line)| line.points.len() > 1)
        .collect();
    if lines.is_empty() {
        return Err(Error::file(&run.join(TABLE), "holds no curve yet: it takes two lines with a loss"));
    }
    let names: Vec<(&str, &str)> = lines.iter().map(|(name, line)| (*name, line.colour)).collect();
    let panel = Panel {
        title: "Loss by step".into(),
        axis: Axis::Zero,
        lines: lines.into_iter().map(|(_, line)| line).collect(),
    };
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
