//! Lines of a log as people read them.

use ddpm_ip::words::{number, rate};

/// What stands between the parts of a line.
pub(super) const BETWEEN: &str = " · ";

/// What is shown of a training step while it runs, and its name on screen.
const SHOWN: [(&str, &str); 8] = [
    ("loss", "loss"),
    ("train_loss", "loss"),
    ("train_acc@1", "top-1"),
    ("val_loss", "validation loss"),
    ("val_acc@1", "validation top-1"),
    ("fid", "FID"),
    ("frechet_distance", "Fréchet distance"),
    ("images_per_sec", ""),
];

/// A line of the logs for people, the step in so many columns.
pub(super) fn step_line(line: &[(String, f64)], columns: usize) -> String {
    let value = |key: &str| line.iter().find(|(k, _)| k == key).map(|(_, v)| *v);
    let mut parts = vec![format!("step {:>columns$}", value("step").unwrap_or_default())];
    for (key, name) in SHOWN {
        match value(key) {
            Some(v) if key == "images_per_sec" => parts.push(format!("{:>16}", rate(v))),
            Some(v) => parts.push(format!("{name} {}", number(v))),
            None => {}
        }
    }
    parts.join(BETWEEN)
}

/// A line of the logs with all that it has, but for the quarters of the timesteps.
pub(super) fn whole_line(line: &[(String, f64)]) -> String {
    let shown = line.iter().filter(|(key, _)| !key.contains("_q"));
    let text = |v: f64| if v.fract() == 0.0 { v.to_string() } else { number(v) };
    shown.map(|(key, v)| format!("{key} {}", text(*v))).collect::<Vec<_>>().join(BETWEEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_one_run_stand_under_each_other() {
        let line = |step: f64, loss: f64, rate: f64| {
            let values =
                [("step", step), ("param_norm", 53.2), ("images_per_sec", rate), ("loss", loss), ("loss_q0", 0.4)];
            values.map(|(key, value)| (key.to_string(), value))
        };
        assert_eq!(step_line(&line(50.0, 0.58, 5404.3), 4), "step   50 · loss 0.5800 ·   5 404 images/s");
        assert_eq!(step_line(&line(1000.0, 0.1473, 12_345.0), 4), "step 1000 · loss 0.1473 ·  12 345 images/s");
        assert_eq!(whole_line(&line(50.0, 0.58, 12.0)), "step 50 · param_norm 53.20 · images_per_sec 12 · loss 0.5800");
        let distance = [("step".to_string(), 1000.0), ("fid".to_string(), 3.21)];
        assert_eq!(step_line(&distance, 4), "step 1000 · FID 3.210");
    }
}
