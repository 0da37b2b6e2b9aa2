//! Tables of the diffusion process and the loss-aware time sampler.

use super::support::{cases, folder, open};
use ddpm_ip::npz::Npz;
use ddpm_math::{NoiseSchedule, Respacing, Schedule, TimeSampler, TimeSamplerKind};

/// What the f64 reference supports.
fn assert_table(what: &str, actual: &[f64], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len(), "{what}: length");
    for (i, (&a, &e)) in actual.iter().zip(expected).enumerate() {
        assert!(a == e || (a - e).abs() <= 1e-12 * e.abs(), "{what}[{i}] is {a:e}, the reference has {e:e}");
    }
}

#[test]
fn golden_schedules() {
    for case in cases("schedules") {
        let text = |key: &str| case[key].as_str().unwrap();
        let noise_schedule: NoiseSchedule = text("noise_schedule").parse().unwrap();
        let respacing: Respacing = text("timestep_respacing").parse().unwrap();
        let steps = case["diffusion_steps"].as_u64().unwrap() as usize;
        let schedule = Schedule::new(noise_schedule, steps, &respacing).unwrap();
        let mut file = open(&case, "file");
        let map: Vec<f64> = file.integers("timestep_map").unwrap().values.iter().map(|&t| t as f64).collect();
        assert_eq!(schedule.times, map, "{case}");
        for (name, table) in [
            ("betas", &schedule.betas),
            ("alphas_cumprod", &schedule.alpha_bar),
            ("alphas_cumprod_prev", &schedule.alpha_bar_prev),
            ("alphas_cumprod_next", &schedule.alpha_bar_next),
            ("sqrt_alphas_cumprod", &schedule.sqrt_alpha_bar),
            ("sqrt_one_minus_alphas_cumprod", &schedule.sqrt_one_minus_alpha_bar),
            ("log_one_minus_alphas_cumprod", &schedule.log_one_minus_alpha_bar),
            ("sqrt_recip_alphas_cumprod", &schedule.sqrt_recip_alpha_bar),
            ("sqrt_recipm1_alphas_cumprod", &schedule.sqrt_recipm1_alpha_bar),
            ("posterior_variance", &schedule.posterior_variance),
            ("posterior_log_variance_clipped", &schedule.posterior_log_variance_clipped),
            ("posterior_mean_coef1", &schedule.posterior_mean_coef1),
            ("posterior_mean_coef2", &schedule.posterior_mean_coef2),
        ] {
            assert_table(&format!("{case}: {name}"), table, &file.doubles(name).unwrap().values);
        }
    }
}

#[test]
fn golden_loss_second_moment() {
    // Some folders hold this one file without listing it.
    let index = super::support::json("index.json");
    let listed = index["loss_second_moment"].as_array().cloned().unwrap_or_default();
    let mut files: Vec<_> = listed.iter().map(|case| folder().join(case["file"].as_str().unwrap())).collect();
    let unlisted = folder().join("loss_second_moment.npz");
    if files.is_empty() && unlisted.exists() {
        files.push(unlisted);
    }
    assert!(std::env::var_os("GOLDEN_DIR").is_some() || !files.is_empty());
    for path in files {
        let mut file = Npz::open(&path).unwrap();
        let (t, loss) = (file.integers("t").unwrap(), file.doubles("loss").unwrap().values);
        let expected = file.doubles("weights_after").unwrap();
        let (batch, steps) = (t.shape[1], expected.shape[1]);
        let mut sampler = TimeSampler::new(TimeSamplerKind::LossSecondMoment, steps);
        let updates =
            t.values.chunks_exact(batch).zip(loss.chunks_exact(batch)).zip(expected.values.chunks_exact(steps));
        for (update, ((t, loss), expected)) in updates.enumerate() {
            let t: Vec<usize> = t.iter().map(|&t| t as usize).collect();
            sampler.update(&t, loss);
            assert_table(&format!("weights after update {update}"), &sampler.weights(), expected);
        }
        assert_ne!(sampler.weights(), vec![1.0; steps], "the case never leaves the warm-up");
    }
}
