//! What a report says, in words.

use super::curve::SIGNIFICANT;
use super::{Curve, Entry, Estimate, Report};
use std::fmt::Write;

/// A table of every checkpoint's findings.
pub(super) fn of(report: &Report) -> String {
    let entries: Vec<String> = report.checkpoints.iter().map(|entry| of_entry(entry, report.images)).collect();
    entries.join("\n\n")
}

fn of_entry(entry: &Entry, images: usize) -> String {
    let r = &entry.readings;
    let corrected = if entry.correct.is_empty() { String::new() } else { format!(", {}", entry.correct) };
    let mut text = format!("{}: {}, {} steps, {images} images{corrected}", entry.name, entry.sampler, r.t.len());
    let mut line = |name: &str, words: String| {
        let _ = write!(text, "\n  {name:28} {words}");
    };
    let t = |i: usize| format!("t = {:.0}", r.t[i]);
    let largest = |curve: &Curve| (0..curve.len()).max_by(|&a, &b| curve.value[a].total_cmp(&curve.value[b]));
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    if let Some(most) = largest(&r.prediction_error) {
        let not_normal = 100.0 * mean(&r.not_normal);
        line(
            "prediction error ν",
            format!(
                "{:.4} on average, {:.4} at most ({}); not normal in {not_normal:.0} % of pixels (5 if all were)",
                mean(&r.prediction_error.value),
                r.prediction_error.value[most],
                t(most)
            ),
        );
    }
    let percent = |e: Estimate| format!("{:.1} ± {:.1} %", 100.0 * e.value.abs(), 100.0 * e.error);
    let absolute = |e: Estimate| format!("{:.4} ± {:.4}", e.value.abs(), e.error);
    let steps = |e: Estimate| format!("{:.1} ± {:.1} timesteps", e.value.abs(), e.error);
    let say = |curve: &Curve, [more, less]: [&str; 2], size: &dyn Fn(Estimate) -> String| {
        let known: Vec<usize> = (0..curve.len()).filter(|&i| curve.value[i].is_finite()).collect();
        let clear = |i: usize| curve.at(i).deviations_from(0.0).abs() >= SIGNIFICANT;
        let Some(most) = known
            .iter()
            .copied()
            .filter(|&i| clear(i))
            .max_by(|&a, &b| curve.value[a].abs().total_cmp(&curve.value[b].abs()))
        else {
            return if known.is_empty() { "not measurable here".into() } else { "none beyond the errors".to_string() };
        };
        let same = |i: usize| clear(i) && curve.value[i].signum() == curve.value[most].signum();
        let (first, last) = (known.iter().rev().find(|&&i| same(i)), known.iter().find(|&&i| same(i)));
        let opposite = known.iter().filter(|&&i| clear(i) && !same(i)).count();
        let word = if curve.value[most] > 0.0 { more } else { less };
        let range = match (first, last) {
            (Some(&first), Some(&last)) if first != last => format!(" from {} to {:.0}", t(first), r.t[last]),
            _ => String::new(),
        };
        let other = if opposite > 0 { format!("; the other way at {opposite} level(s)") } else { String::new() };
        format!("{word}{range}, by {} at {}{other}", size(curve.at(most)), t(most))
    };
    let ratio: Curve = (0..r.t.len()).map(|i| r.norm_sampling.at(i).over(r.norm_training.at(i)).less(1.0)).collect();
    let more = ["larger", "smaller"];
    line("variance error δ over floor", say(&r.variance_error_excess, more, &absolute));
    line("variance of sampled x", say(&r.variance_excess, more, &absolute));
    let short = if r.short_variance_floor.iter().all(|v| v.is_nan()) {
        "only ddpm, ddim with eta 1 and dpm-solver++-sde have a bound to compare with".into()
    } else {
        say(&r.short_variance_excess, ["larger, at least", "below its bound"], &absolute)
    };
    line("the same, short chains", short);
    line("norm of ε in sampling", say(&ratio, more, &percent));
    line("effective timestep", say(&r.effective_shift, ["later (as if noisier)", "earlier (as if cleaner)"], &steps));
    for (band, name) in ["low band", "high bands"].iter().enumerate() {
        line(&format!("energy of x, {name}"), say(&r.state_energy[band], more, &percent));
        line(&format!("energy of x̂0, {name}"), say(&r.x_start_energy[band], more, &percent));
    }
    if let Some(most) = largest(&r.input_gradient) {
        line("input gradient ‖J‖", format!("{:.2} at most ({})", r.input_gradient.value[most], t(most)));
    }
    if let Some(start) = r.start.last() {
        line(
            "distance from x0 after all",
            format!(
                "{:.3} from t = {:.0} by DDIM, {:.3} by DDPM",
                start.deterministic[0], start.t, start.stochastic[0]
            ),
        );
    }
    let s = &entry.suggestions;
    let es = match (&s.es_auto.scale, s.es_auto.largest_gap) {
        (Some(scale), Some([before, after])) => format!(
            "sample with es:{scale:.4} ({}: the largest gap of norms is {:.1} % without, {:.1} % with it, on fresh seeds)",
            if s.es_auto.kept { "worth trying" } else { "not kept" },
            100.0 * before,
            100.0 * after
        ),
        _ => s.es_auto.reason.clone().unwrap_or_default(),
    };
    line(
        "rules of thumb, unproven",
        format!(
            "train with γ = {:.3} (half of ν) or {:.3} (excess of the variance); {es}",
            s.gamma_from_prediction_error, s.gamma_from_variance
        ),
    );
    text
}
